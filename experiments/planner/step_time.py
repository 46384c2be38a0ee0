"""The duration of a training step on given machines: computation, exposed communication and update."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bellwether.experiments.planner.compute_time import BANDWIDTH_EFFICIENCY, ComputeTime
from bellwether.experiments.planner.gpus import Gpu
from bellwether.experiments.planner.network import Network, collectives
from bellwether.optimizers.registry import is_layer_wise
from bellwether.trainer.config import Config
from bellwether.trainer.memory.activations import Profile
from bellwether.trainer.memory.sharding import Sharding
from bellwether.trainer.memory.update import multiplications
from bellwether.trainer.phases import Split

# Bytes that an update moves per element, with and without trust ratio: docs/results/optimizers-cpu.md.
_UPDATE_BYTES = {True: 40, False: 28}


@dataclass(frozen=True)
class Machines:
    """The machines of a planned run."""

    gpu: Gpu
    nodes: int
    per_node: int
    headroom: float = 0.1  # share of the memory left to CUDA, NCCL, workspaces and fragmentation
    mfu: float | None = None
    throughput: float | None = (
        None  # samples per second and GPU, measured with the config's micro-batch; replaces FLOPs and MFU
    )
    mean_length: int | None = None  # tokens of a text sample; None: as long as the config's

    @property
    def world_size(self) -> int:
        return self.nodes * self.per_node

    @property
    def memory(self) -> float:
        """Bytes of a GPU that the run may use."""
        return self.gpu.memory * 2**30 * (1 - self.headroom)

    @property
    def network(self) -> Network:
        link, port = 1e9 * self.gpu.link, 1e9 * self.gpu.network / 8
        return Network(self.per_node, BANDWIDTH_EFFICIENCY * link, BANDWIDTH_EFFICIENCY * port)


@dataclass(frozen=True)
class StepTime:
    """Seconds of the parts of a step, which follow each other."""

    compute: float
    network: float  # not hidden behind computation
    update: float
    sent: float  # bytes that a rank sends

    @property
    def total(self) -> float:
        return self.compute + self.network + self.update


def compute_time(profile: Profile, machines: Machines, config: Config) -> ComputeTime:
    """The time of a micro-batch on one GPU."""
    micro, peak = config.batch.most, machines.gpu.peak(config.engine.arithmetic)
    if machines.throughput is not None:
        return ComputeTime.measured(micro / machines.throughput, micro, profile)
    profile = shortened(profile, config, machines.mean_length)
    if machines.mfu is not None:
        return ComputeTime.measured(micro * profile.flops / (machines.mfu * peak), micro, profile)
    model = config.model
    return ComputeTime.estimate(
        profile, machines.gpu, config.engine.arithmetic, model.matrix_efficiency, model.memory_traffic
    )


def shortened(profile: Profile, config: Config, mean_length: int | None) -> Profile:
    """The costs of samples that are shorter than the config's sequence length on average, if nothing is computed for their padding."""
    length = getattr(config.data, "sequence_length", None)
    if mean_length is None or length is None:
        return profile
    share = min(1.0, mean_length / length)
    return replace(profile, flops=share * profile.flops, saved_per_sample=share * profile.saved_per_sample)


def step_time(profile: Profile, sharding: Sharding, machines: Machines, config: Config, batch: Split) -> StepTime:
    """Estimate a step with the global batch of `batch`."""
    compute = batch.accumulation * compute_time(profile, machines, config).seconds(batch.micro)
    traffic = collectives(profile, sharding, batch.accumulation, batch.world_size)
    times = [(c.hidden, c.seconds(machines.network, batch.world_size)) for c in traffic]
    overlapped = sum(seconds for hidden, seconds in times if hidden)
    exposed = sum(seconds for hidden, seconds in times if not hidden)
    elements = profile.elements / (batch.world_size if sharding.stage else 1)
    has_trust_ratio = is_layer_wise(config.optimizer.name, config.optimizer.trust_ratio)
    update = elements * _UPDATE_BYTES[has_trust_ratio] / (BANDWIDTH_EFFICIENCY * 1e9 * machines.gpu.bandwidth)
    update += iteration_time(profile, sharding, machines, config, batch.world_size)
    sent = sum(c.sent(batch.world_size) for c in traffic)
    return StepTime(compute, exposed + max(0.0, overlapped - compute), update, sent)


def iteration_time(profile: Profile, sharding: Sharding, machines: Machines, config: Config, world_size: int) -> float:
    """The time of Newton and Schulz's iteration over Muon's matrices, on the rank that owns the most work."""
    groups = [shapes for shapes, matrices in zip(profile.shapes, profile.matrices, strict=False) if matrices]
    if not groups or not sharding.costs.iterations:
        return 0.0
    precision = "bf16" if sharding.costs.direction_bytes == 2 else "tf32"
    speed = config.model.matrix_efficiency * (machines.gpu.peak(precision) or machines.gpu.peak("fp16"))
    if sharding.stage and not sharding.is_bf16_optimizer:  # one group after the other
        loads = sum(multiplications(shapes, world_size) for shapes in groups)
    else:
        loads = multiplications([shape for shapes in groups for shape in shapes], world_size if sharding.stage else 1)
    return 2 * sharding.costs.iterations * loads / speed
