"""A plan as text: one block per phase, then the assumptions."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bellwether.experiments.planner.compute_time import BANDWIDTH_EFFICIENCY
from bellwether.experiments.planner.critical_batch import CriticalBatch
from bellwether.experiments.planner.estimate import PhasePlan
from bellwether.experiments.planner.scaling import MAX_GPUS, Row
from bellwether.experiments.planner.step_time import compute_time
from bellwether.trainer.phase_rows import notes, rows

_WIDTH = 100
_GIB = 2**30


def lines(plans: Sequence[PhasePlan], critical: CriticalBatch | None, price: float | None) -> Iterator[str]:
    """The lines of the text, none longer than 100 characters."""
    machines, config = plans[0].machines, plans[0].phase.config
    hardware = f"{machines.nodes} x {machines.per_node} {machines.gpu.name}"
    for plan in plans:
        part = f", phase {plan.phase.index + 1} of {len(plans)}" if len(plans) > 1 else ""
        yield f"{config.name} on {hardware}{part}"
        for block in (_run(plan), _memory(plan, len(plans)), _network(plan), _cost(plan, price)):
            yield from block
            yield ""
        yield from _strong_scaling(plan)
        yield from _weak_scaling(plan)
        yield from _worth(plan, critical)
    if len(plans) > 1:
        hours, energy = sum(p.hours for p in plans), sum(p.energy for p in plans)
        yield f"all {len(plans)} phases: {_hours(hours)}, {_price(hours * machines.world_size, price)}{energy:,.3g} kWh"
        yield ""
    yield from _assumptions(plans, price)


def _run(plan: PhasePlan) -> Iterator[str]:
    phase = plan.phase
    for label, value in rows(phase):
        if label == "length" and plan.info.rows is None:
            value = f"{phase.steps:,} steps, {phase.samples:,} samples"
        yield from _wrapped(f"  {label:<13} {value}", 16)
    profile = plan.profile
    trained = f" ({profile.elements / 1e6:,.1f} M trained)" if profile.frozen else ""
    size = f"{(profile.elements + sum(profile.frozen)) / 1e6:,.1f} M parameters{trained}"
    yield f"  {'model':<13} {size}, {profile.flops / 1e9:,.4g} GFLOP per sample"
    for note in notes(phase):
        yield from _wrapped(f"  {'note':<13} {note}", 16)


def _memory(plan: PhasePlan, phases: int) -> Iterator[str]:
    batch, machines = plan.phase.split, plan.machines
    per_rank = batch.global_batch // batch.world_size
    yield f"memory per rank at the peak of a step, GiB, with micro-batches of {batch.micro}"
    yield "  ZeRO  parameters  gradients  optimizer  buffers  activations   total  fits  largest micro-batch"
    for stage in plan.stages:
        peak = stage.peak
        parts = [peak.parameters, peak.gradients, peak.optimizer, peak.buffers, peak.activations, peak.total]
        text = "".join(f"{part / _GIB:>{width}.2f}" for part, width in zip(parts, (12, 11, 11, 9, 13, 8), strict=True))
        mark = "*" if stage.stage == plan.sharding.stage else " "
        most = f"{stage.largest_micro:,}" + (", no accumulation" if stage.largest_micro == per_rank else "")
        yield f"  {stage.stage:>3}{mark} {text}{'yes' if stage.fits else 'NO':>6}  {most}"
    chosen, best = plan.chosen, plan.best
    yield from _wrapped(
        f"  * as configured; the peak is in the {chosen.peak.moment}. {machines.memory / _GIB:.1f} of {machines.gpu.memory:.1f} "
        "GiB per GPU are available (--headroom).", 4,
    )  # fmt: skip
    if best is None:
        yield "  No sample fits: raise engine.stage, or set engine.activation_checkpointing: true."
    elif best.micro != batch.micro:
        # The phases of a recipe are not in the config, and have no micro-batch of their own.
        prefix = f"phases.{plan.phase.index}." if phases > 1 and plan.phase.config.schedule.recipe is None else ""
        yield (
            f"  {prefix}batch.micro={chosen.largest_micro} gives {best.micro} micro x {best.accumulation} accumulation x "
            f"{best.world_size} processes."
        )


def _network(plan: PhasePlan) -> Iterator[str]:
    yield "network traffic of a step"
    yield f"  ZeRO  {'    collectives':<49}  {'sent by rank':>12}  {'exposed':>9}  {'step':>9}"
    for stage in plan.stages:
        mark = "*" if stage.stage == plan.sharding.stage else " "
        collectives = [
            f"{c.count:>4} {c.kind}{'' if c.count == 1 else 's'} of {_bytes(c.size / c.count)}" for c in stage.traffic
        ]
        numbers = (_bytes(stage.step.sent), _seconds(stage.step.network), _seconds(stage.step.total))
        yield f"  {stage.stage:>3}{mark} {collectives[0]:<50}  {numbers[0]:>12}  {numbers[1]:>9}  {numbers[2]:>9}"
        yield from (f"       {other}" for other in collectives[1:])


def _cost(plan: PhasePlan, price: float | None) -> Iterator[str]:
    step, machines, phase = plan.step, plan.machines, plan.phase
    throughput = phase.split.global_batch / step.total
    at = "" if phase.batches.is_constant else f" at the largest batch, {phase.split.global_batch:,},"
    yield from _wrapped(
        f"a step{at} takes {_seconds(step.total)}: {_seconds(step.compute)} computation, {_seconds(step.network)} exposed "
        f"communication, {_seconds(step.update)} update",
        2,
    )
    yield f"  {throughput:,.0f} samples/s, {throughput / machines.world_size:,.1f} per GPU"
    hours = plan.hours * machines.world_size
    yield (
        f"  {phase.samples:,} samples in {_hours(plan.hours)}: {hours:,.1f} GPU hours, "
        f"{_price(hours, price)}{plan.energy:,.3g} kWh"
    )


def _strong_scaling(plan: PhasePlan) -> Iterator[str]:
    batch = plan.phase.split.global_batch
    yield f"strong scaling: more GPUs for {'batch' if plan.phase.batches.is_constant else 'batches up to'} {batch:,}"
    yield (
        f"  {'GPUs':>5}  {'micro x acc.':>12}  {'step':>8}  {'network':>7}  {'samples/s':>11}  {'efficiency':>10}  {'time':>9}"
    )
    for row in plan.strong:
        yield (
            f"  {row.gpus:>5,}  {f'{row.micro} x {row.accumulation}':>12}  {_seconds(row.step.total):>8}  "
            f"{row.step.network / row.step.total:>7.0%}  {row.samples_per_s:>11,.0f}  {row.efficiency:>10.0%}  {_hours(row.hours):>9}"
        )
    following = 2 * plan.strong[-1].gpus
    if following <= MAX_GPUS:
        smallest = min(split.global_batch for split in plan.phase.splits)
        undivided = next((s.global_batch for s in plan.phase.splits if s.global_batch % following), batch)
        why = "some ranks would have no sample" if following > smallest else f"{undivided:,} cannot be divided evenly"
        yield f"  {following:>5,}  {why}"
    yield ""


def _weak_scaling(plan: PhasePlan) -> Iterator[str]:
    if len(plan.weak) == 1:
        return
    has_worth = any(row.worth is not None for row in plan.weak)
    samples = "the samples that each batch size needs" if has_worth else "the same number of samples"
    yield f"weak scaling: the batch grows with the GPUs, for {samples}"
    ranges = any(row.hours_high > row.hours_low for row in plan.weak)
    yield (
        f"  {'GPUs':>5}  {'batch':>10}  {'step':>8}  {'samples/s':>11}  "
        + (f"{'time':>9}  {'90 % interval':>18}" if ranges else f"{'efficiency':>10}  {'time':>9}")
        + f"  {'peak lr':>9}  {'warm-up':>7}"
        + (f"  {'worth':>5}" if has_worth else "")
    )
    for row in plan.weak:
        yield _weak_row(row, ranges)
    for note in next((row.notes for row in plan.weak if row.notes), ()):
        yield from _wrapped(f"  note: {note}", 8)
    if all(row.lr is None for row in plan.weak[1:]):
        note = "learning rate and warm-up at other batch sizes are unknown: set schedule.recipe or scaling.rule"
        yield from _wrapped(f"  note: {note}", 8)
    yield ""


def _weak_row(row: Row, ranges: bool) -> str:
    lr = "" if row.lr is None else f"{row.lr:.3e}"
    warmup = "" if row.warmup is None else f"{row.warmup:.1%}"
    worth = "" if row.worth is None else f"  {row.worth:>5.0%}"
    interval = f"{_hours(row.hours_low)} - {_hours(row.hours_high)}"
    time = f"{_hours(row.hours):>9}  {interval:>18}" if ranges else f"{row.efficiency:>10.0%}  {_hours(row.hours):>9}"
    return (
        f"  {row.gpus:>5,}  {row.batch:>10,}  {_seconds(row.step.total):>8}  {row.samples_per_s:>11,.0f}  {time}  {lr:>9}  "
        f"{warmup:>7}{worth}"
    ).rstrip()


def _worth(plan: PhasePlan, critical: CriticalBatch | None) -> Iterator[str]:
    if critical is None:
        return
    batch = plan.phase.split.global_batch
    side = "above" if batch > critical.size else "below"
    curve = "samples = S_min (1 + B / B_crit)" if critical.fit is None else "the fitted curve"
    yield from _wrapped(
        f"batch {batch:,} is {side} the critical batch size of {critical.size:,.0f} ({critical.source}): by {curve}, each of its samples "
        f"is worth {critical.efficiency(batch):.0%}{_range(critical, batch)} of a sample of a small batch", 2,
    )  # fmt: skip
    yield from _wrapped(_workload(plan, critical), 2)
    yield ""


def _workload(plan: PhasePlan, critical: CriticalBatch) -> str:
    """Where the critical batch size was measured: it belongs to a model, its data and a target."""
    config = plan.phase.config
    here = f"{config.model.label} {Path(config.data.source).name}"
    if critical.workload == here:
        return f"it was measured on {here}; another target or starting point has another critical batch size"
    where = (
        f"it was measured on {critical.workload}, not on {here}"
        if critical.workload
        else f"it must have been measured on {here}"
    )
    return f"{where}: another model, dataset, target or starting point has another critical batch size"


def _range(critical: CriticalBatch, batch: int) -> str:
    """The worth at both ends of the interval of the critical batch size."""
    if critical.fit is not None and len(critical.fit.draws):
        curves = critical.fit.random_curves(np.array([batch], dtype=np.float64))[:, 0]
        low, high = np.quantile(np.exp(critical.fit.draws[:, 0]) / curves, [0.05, 0.95])
        return f" ({low:.0%} to {high:.0%})"
    if critical.low is None:
        return ""
    high = 1.0 if critical.high is None else replace(critical, size=critical.high).efficiency(batch)
    return f" ({replace(critical, size=critical.low).efficiency(batch):.0%} to {high:.0%})"


def _assumptions(plans: Sequence[PhasePlan], price: float | None) -> Iterator[str]:
    machines, gpu, network = plans[0].machines, plans[0].machines.gpu, plans[0].machines.network
    assumed = list(dict.fromkeys(note for plan in plans for note in plan.info.assumed))
    assumed.append(
        "memory: one pass on fake tensors, with the attention and dropout of GPUs, and DeepSpeed's own buckets; CUDA, NCCL, "
        f"cuDNN and fragmentation use the remaining {machines.headroom:.0%} (--headroom)"
    )
    if copy := max(plan.checkpoint_copy for plan in plans):
        assumed.append(
            f"host memory: {copy / 2**30:.2f} GiB per process hold the copy of a checkpoint (checkpoint.async_save), which is not in "
            "the table"
        )
    assumed += _computation(plans[0])
    assumed += [
        f"network: alpha + bytes / beta; {network.link / 1e9:,.0f} GB/s within a node and {network.port / 1e9:,.0f} GB/s per GPU "
        f"between nodes, {BANDWIDTH_EFFICIENCY:.0%} of nominal; {network.hop_in * 1e6:.0f} and {network.hop_out * 1e6:.0f} us "
        f"per hop, {network.start * 1e6:.0f} us to start; no other traffic",
        "overlap: stages 1 to 3 hide communication behind computation as far as possible, where the run does "
        "(zero_optimization.overlap_comm); otherwise nothing is hidden",
        "update: bytes moved by the optimizer at 80 % of the memory bandwidth; no checkpoints, evaluation or restarts",
        f"energy: {gpu.watts:,.0f} W per GPU at all times; without hosts, network and cooling",
    ]
    if price is not None:
        assumed.append(f"price: {price:,g} per GPU hour")
    yield "assumptions"
    for text in assumed:
        yield from _wrapped(f"  - {text}", 4)


def _computation(plan: PhasePlan) -> Iterator[str]:
    machines, config = plan.machines, plan.phase.config
    gpu, precision, micro = machines.gpu, config.engine.arithmetic, config.batch.most
    time = compute_time(plan.profile, machines, config)
    if machines.throughput is not None:
        source = f"{machines.throughput:,g} samples/s per GPU as measured with micro-batches of {micro}"
    elif machines.mfu is not None:
        source = f"{machines.mfu:.0%} of {gpu.peak(precision) / 1e12:,.4g} TFLOP/s in {precision} with micro-batches of {micro}"
    else:
        source = (
            f"matrix products at {config.model.matrix_efficiency:.0%} of {gpu.peak(precision) / 1e12:,.4g} TFLOP/s in {precision}, and "
            f"{config.model.memory_traffic:g} bytes of traffic with the memory for each byte saved for the backward pass, at "
            f"{BANDWIDTH_EFFICIENCY:.0%} of {gpu.bandwidth:,.0f} GB/s (better --throughput, measured on one GPU)"
        )
    yield f"computation: {_seconds(time.fixed)} for each micro-batch and {_seconds(time.per_sample)} for each sample: {source}; no waiting for data"
    length = getattr(config.data, "sequence_length", None)
    if length is None or machines.throughput is not None:
        return
    if machines.mean_length is not None:
        yield f"sequences of {machines.mean_length:,} tokens on average (--mean-length), without computation for padding up to {length:,}"
    else:
        yield (
            f"every sequence has its full length of {length:,} tokens: give the mean of yours as --mean-length if padding costs nothing; "
            "published throughputs are of shorter or packed sequences, and cannot be compared without their mean length"
        )


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=" " * indent, drop_whitespace=True)


def _bytes(size: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:,.2f} {unit}"
    return f"{size:,.0f} B"


def _seconds(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:,.2f} s"
    return f"{seconds * 1e3:,.1f} ms"


def _hours(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 1:
        return f"{hours:,.2f} h"
    return f"{hours * 60:,.1f} min" if hours * 60 >= 1 else f"{hours * 3600:,.1f} s"


def _price(gpu_hours: float, price: float | None) -> str:
    return "" if price is None else f"{gpu_hours * price:,.0f} at {price:g} per hour, "
