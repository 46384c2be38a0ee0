"""A plan for people: one block a phase, then what was assumed."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from bellwether.experiments.planner.critical_batch import Critical
from bellwether.experiments.planner.estimate import _REACHED, MFU, PhasePlan, Row
from bellwether.trainer.phases import notes, rows

_WIDTH = 100
_GIB = 2**30


def lines(plans: Sequence[PhasePlan], critical: Critical | None, price: float | None) -> Iterator[str]:
    """The whole text, a line at a time, none longer than 100 characters."""
    machines, config = plans[0].machines, plans[0].phase.config
    where = f"{machines.nodes} x {machines.per_node} {machines.gpu.name}"
    for found in plans:
        part = f", phase {found.phase.index + 1} of {len(plans)}" if len(plans) > 1 else ""
        yield f"{config.name} on {where}{part}"
        for block in (_run(found), _memory(found, len(plans)), _network(found), _cost(found, price)):
            yield from block
            yield ""
        yield from _scaling(found)
        yield from _worth(found, critical)
    if len(plans) > 1:
        hours, energy = sum(p.hours for p in plans), sum(p.energy for p in plans)
        yield f"all {len(plans)} phases: {_hours(hours)}, {_price(hours * machines.world_size, price)}{energy:,.3g} kWh"
        yield ""
    yield from _assumptions(plans, price)


def _run(found: PhasePlan) -> Iterator[str]:
    phase = found.phase
    for label, value in rows(phase):
        if label == "length" and found.subject.rows is None:
            value = f"{phase.steps:,} steps, {phase.samples:,} samples"
        yield from _wrapped(f"  {label:<13} {value}", 16)
    profile = found.profile
    yield f"  {'model':<13} {profile.elements / 1e6:,.1f} M parameters, {profile.flops / 1e9:,.4g} GFLOP a sample"
    for note in notes(phase):
        yield from _wrapped(f"  {'note':<13} {note}", 16)


def _memory(found: PhasePlan, phases: int) -> Iterator[str]:
    s, machines = found.phase.split, found.machines
    per_rank = s.global_batch // s.world_size
    yield f"memory of a rank at its largest moment, GiB, with micro-batches of {s.micro}"
    yield "  ZeRO  parameters  gradients  optimizer  buffers  activations   total  fits  largest micro-batch"
    for stage in found.stages:
        b = stage.peak
        cells = [b.parameters, b.gradients, b.optimizer, b.buffers, b.activations, b.total]
        text = "".join(f"{cell / _GIB:>{width}.2f}" for cell, width in zip(cells, (12, 11, 11, 9, 13, 8), strict=True))
        mark = "*" if stage.stage == found.how.stage else " "
        most = f"{stage.largest_micro:,}" + (", all at once" if stage.largest_micro == per_rank else "")
        yield f"  {stage.stage:>3}{mark} {text}{'yes' if stage.fits else 'NO':>6}  {most}"
    chosen = found.chosen
    yield from _wrapped(
        f"  * as configured; its largest moment is the {chosen.peak.moment}. {machines.gpu.memory:.1f} GiB a GPU, of which "
        f"{machines.memory / _GIB:.1f} may be filled.", 4,
    )  # fmt: skip
    if found.best is None:
        yield "  Not one sample fits: shard more (engine.stage), or engine.activation_checkpointing: true."
    elif found.best.micro != s.micro:
        best = found.best
        # A recipe's phases are not in the config, and leave the micro-batch to the run.
        of = f"phases.{found.phase.index}." if phases > 1 and found.phase.config.schedule.recipe is None else ""
        yield (
            f"  {of}batch.micro={chosen.largest_micro} gives {best.micro} micro x {best.accumulation} accumulation x "
            f"{best.world_size} processes."
        )


def _network(found: PhasePlan) -> Iterator[str]:
    yield "network of a step"
    yield f"  ZeRO  {'    collectives':<49}  {'a rank sends':>12}  {'waiting':>9}  {'step':>9}"
    for stage in found.stages:
        mark = "*" if stage.stage == found.how.stage else " "
        said = [
            f"{c.count:>4} {c.kind}{'' if c.count == 1 else 's'} of {_bytes(c.size / c.count)}" for c in stage.traffic
        ]
        numbers = (_bytes(stage.step.sent), _seconds(stage.step.network), _seconds(stage.step.total))
        yield f"  {stage.stage:>3}{mark} {said[0]:<50}  {numbers[0]:>12}  {numbers[1]:>9}  {numbers[2]:>9}"
        yield from (f"       {other}" for other in said[1:])


def _cost(found: PhasePlan, price: float | None) -> Iterator[str]:
    step, machines, phase = found.step, found.machines, found.phase
    pace = phase.split.global_batch / step.total
    yield (
        f"a step takes {_seconds(step.total)}: {_seconds(step.compute)} computing, {_seconds(step.network)} waiting for "
        f"the network, {_seconds(step.update)} updating"
    )
    yield f"  {pace:,.0f} samples/s, {pace / machines.world_size:,.1f} a GPU"
    hours = found.hours * machines.world_size
    yield (
        f"  {phase.samples:,} samples in {_hours(found.hours)}: {hours:,.1f} GPU hours, "
        f"{_price(hours, price)}{found.energy:,.3g} kWh"
    )


def _scaling(found: PhasePlan) -> Iterator[str]:
    head = f"  {'GPUs':>5}  {'micro x acc.':>12}  {'step':>8}  {'network':>7}  {'samples/s':>11}  {'efficiency':>10}  {'time':>9}"
    batch = found.phase.split.global_batch
    yield f"more GPUs for batch {batch:,}"
    yield head
    for row in found.strong:
        yield _scaled(row)
    left = 2 * found.strong[-1].gpus
    if left <= 4096:
        why = "a rank would have no sample" if left > batch else f"{batch:,} cannot be shared alike"
        yield f"  {left:>5,}  {why}"
    yield ""
    if len(found.weak) == 1:
        return
    worth = any(row.worth is not None for row in found.weak)
    yield "a batch that grows with the GPUs, for as many samples" + (" as it then needs" if worth else "")
    yield (
        f"  {'GPUs':>5}  {'batch':>10}  {'step':>8}  {'samples/s':>11}  {'efficiency':>10}  {'time':>9}  {'peak lr':>9}  {'warm-up':>7}"
        + (f"  {'worth':>5}" if worth else "")
    )
    for row in found.weak:
        lr = "" if row.lr is None else f"{row.lr:.3e}"
        warmup = "" if row.warmup is None else f"{row.warmup:.1%}"
        yield (
            f"  {row.gpus:>5,}  {row.batch:>10,}  {_seconds(row.step.total):>8}  {row.samples_per_s:>11,.0f}  "
            f"{row.efficiency:>10.0%}  {_hours(row.hours):>9}  {lr:>9}  {warmup:>7}"
            + (f"  {row.worth:>5.0%}" if row.worth is not None else "")
        ).rstrip()
    said = next((row.notes for row in found.weak if row.notes), ())
    for note in said:
        yield from _wrapped(f"  note: {note}", 8)
    if all(row.lr is None for row in found.weak[1:]):
        yield from _wrapped(
            "  note: neither schedule.recipe nor scaling.rule says how learning rate and warm-up follow the batch", 8
        )
    yield ""


def _scaled(row: Row) -> str:
    return (
        f"  {row.gpus:>5,}  {f'{row.micro} x {row.accumulation}':>12}  {_seconds(row.step.total):>8}  "
        f"{row.step.network / row.step.total:>7.0%}  {row.samples_per_s:>11,.0f}  {row.efficiency:>10.0%}  {_hours(row.hours):>9}"
    )


def _worth(found: PhasePlan, critical: Critical | None) -> Iterator[str]:
    if critical is None:
        return
    batch = found.phase.split.global_batch
    share = critical.efficiency(batch)
    side = "beyond" if batch > critical.size else "below"
    yield from _wrapped(
        f"batch {batch:,} is {side} the critical batch of {critical.size:,.0f} ({critical.source}): samples = "
        f"S_min (1 + B / B_crit), so that {share:.0%} of them are worth what a small batch's are", 2,
    )  # fmt: skip
    yield ""


def _assumptions(plans: Sequence[PhasePlan], price: float | None) -> Iterator[str]:
    found = plans[0]
    machines, gpu, network = found.machines, found.machines.gpu, found.machines.network
    precision = found.phase.config.engine.precision
    assumed = list(dict.fromkeys(note for p in plans for note in p.subject.assumed))
    assumed.append(
        "memory: one pass on tensors without numbers, with a GPU's attention and dropout, and DeepSpeed's own buckets; CUDA, "
        f"NCCL, cuDNN and fragmentation have the {machines.headroom:.0%} that are left (--headroom)"
    )
    if machines.throughput is not None:
        assumed.append(f"computing: {machines.throughput:,g} samples/s a GPU, as measured, at every micro-batch")
    else:
        mfu = machines.mfu or MFU[found.phase.config.model.kind]
        assumed.append(
            f"computing: {mfu:.0%} of {gpu.peak(precision) / 1e12:,.4g} TFLOP/s in {precision}, at every micro-batch; data are "
            "never waited for (--mfu; better --throughput, measured on one GPU)"
        )
    assumed.append(
        f"network: alpha + bytes / beta; {network.link / 1e9:,.0f} GB/s in a node and {network.port / 1e9:,.0f} GB/s a GPU "
        f"between nodes, {_REACHED:.0%} of nominal; {network.hop_in * 1e6:.0f} and {network.hop_out * 1e6:.0f} us a hop, "
        f"{network.start * 1e6:.0f} us to start; nobody else on it"
    )
    assumed.append(
        "overlap: stage 3, and others with zero_optimization.overlap_comm, hide the network behind computation as far as that "
        "lasts; else nothing is hidden"
    )
    assumed.append(
        "update: bytes moved by the rule at 80 % of the memory's bandwidth; checkpoints, evaluation and restarts: none"
    )
    assumed.append(f"energy: {gpu.watts:,.0f} W a GPU at all times; hosts, network and cooling not counted")
    if price is not None:
        assumed.append(f"price: {price:,g} for an hour of a GPU")
    yield "assumed"
    for text in assumed:
        yield from _wrapped(f"  - {text}", 4)


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
    return "" if price is None else f"{gpu_hours * price:,.0f} at {price:g} an hour, "
