"""Measures the time of one step of each optimizer, next to torch's and others': one table from one run.

    make bench-optimizers
    make bench-optimizers ARGS="--rounds 41 --json build/bench.json --markdown docs/results/optimizers-cpu.md"

Two settings: BERT-base's parameters as they are, and one flat tensor that holds many parameters, as ZeRO hands it to an
optimizer. All entries of a setting update the same weights with the same gradients and the same memory for moments,
and take turns, so that disturbances of the machine and the placement of memory affect all of them alike.

timm and pytorch-optimizer are installed separately, under build/: timm in .venv would break DeepSpeed's import where there is
no torchvision. Without a package index their rows contain the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib
import json
import math
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bellwether.optimizers import AdamW, Lamb, Lars, RAdam, ShardedOptimizer
from bellwether.optimizers.kernels import NAMES
from bellwether.optimizers.shards.layout import ParameterInfo, ShardLayout, cut

ROOT = Path(__file__).resolve().parent.parent
PEERS = {"timm": "1.0.31", "pytorch-optimizer": "4.1.0"}

# Least bytes that a step has to move for each float32 element.
BYTES = {
    "AdamW": 28,  # reads w g m v, writes w m v
    "RAdam": 28,
    # The norms have to be known before the first weight changes, and a model does not fit into a cache.
    "Lamb": 40,  # reads w g m v, writes m v; then reads w m v, writes w
    "Lars": 28,  # reads w g; then reads w g m, writes w m
    "copy": 8,
}
OURS: dict[str, type] = {"AdamW": AdamW, "RAdam": RAdam, "Lamb": Lamb, "Lars": Lars}
NEEDS = {"cpu": "cpu", "triton": "cuda"}  # kernels that run on one kind of device alone

LR = 1e-6  # so small that the weights hardly change under any rule, and stay realistic


@dataclass
class Setting:
    """Parameters with gradients, and the memory that the moments of all entries share."""

    name: str
    weights: list[nn.Parameter]
    plain: list[nn.Parameter]  # biases and normalisation: no decay, no trust ratio
    shard: ShardLayout | None = None
    pool: dict[tuple[Tensor, int], Tensor] = field(default_factory=dict)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.weights, *self.plain]

    @property
    def numel(self) -> int:
        return sum(p.numel() for p in self.parameters)

    def groups(self, **plain: Any) -> list[dict[str, Any]]:
        """Groups as of `bellwether.optimizers.groups`; ``plain`` are the options of the second."""
        groups = [{"params": self.weights}, {"params": self.plain, "weight_decay": 0.0, **plain}]
        return [group for group in groups if group["params"]]


@dataclass
class Entry:
    """One row of the table."""

    optimizer: str
    version: str
    make: Callable[[Setting], Callable[[], Any]]  # returns what is timed
    step: Callable[[], Any] | None = None
    seconds: list[float] = field(default_factory=list)
    extra: int = 0  # bytes that it needs beyond AdamW's moments
    problem: str = ""


def bert(layers: int, hidden: int, vocabulary: int, positions: int = 512) -> list[tuple[str, tuple[int, ...], bool]]:
    """(name, shape, whether it is a weight) of each parameter of a BERT encoder with its pooler."""

    def linear(name: str, rows: int, columns: int) -> list[tuple[str, tuple[int, ...], bool]]:
        return [(f"{name}.weight", (rows, columns), True), (f"{name}.bias", (rows,), False)]

    def norm(name: str) -> list[tuple[str, tuple[int, ...], bool]]:
        return [(f"{name}.weight", (hidden,), False), (f"{name}.bias", (hidden,), False)]

    found: list[tuple[str, tuple[int, ...], bool]] = [
        ("words", (vocabulary, hidden), True),
        ("positions", (positions, hidden), True),
        ("types", (2, hidden), True),
        *norm("norm"),
    ]
    for i in range(layers):
        for name in ("query", "key", "value", "output"):
            found += linear(f"{i}.{name}", hidden, hidden)
        found += norm(f"{i}.attention_norm")
        found += linear(f"{i}.up", 4 * hidden, hidden) + linear(f"{i}.down", hidden, 4 * hidden)
        found += norm(f"{i}.norm")
    return found + linear("pooler", hidden, hidden)


def model_setting(size: str, device: torch.device) -> Setting:
    """BERT-base: 199 tensors, 109.5 million elements."""
    shapes = bert(12, 768, 30522) if size == "full" else bert(2, 64, 500)
    weights = [_parameter(shape, device) for _, shape, is_weight in shapes if is_weight]
    plain = [_parameter(shape, device) for _, shape, is_weight in shapes if not is_weight]
    name = f"BERT-base, {len(shapes)} tensors" if size == "full" else f"tiny BERT, {len(shapes)} tensors"
    return Setting(name, weights, plain)


def shard_setting(size: str, device: torch.device) -> Setting:
    """The weights of a BERT of 6 layers in one tensor of 66.4 million elements: a param group, as ZeRO-1 and 2 have it."""
    shapes = bert(6, 768, 30522) if size == "full" else bert(1, 64, 500)
    parameters = [ParameterInfo(name, shape) for name, shape, is_weight in shapes if is_weight]
    offsets = [0, *accumulate(p.numel for p in parameters)]
    flat = _parameter((offsets[-1],), device)
    pieces = cut(zip(parameters, offsets, strict=False), 0, offsets[-1])
    name = f"flat shard of {len(parameters)} parameters"
    return Setting(name, [flat], [], ShardLayout(flat, tuple(parameters), pieces, None))


def _parameter(shape: tuple[int, ...], device: torch.device) -> nn.Parameter:
    parameter = nn.Parameter(torch.randn(shape, device=device).mul_(0.02))
    parameter.grad = torch.randn(shape, device=device).mul_(1e-3)
    return parameter


def entries(setting: Setting, device: torch.device, peers: dict[str, str]) -> list[Entry]:
    """The entries of a setting; ``peers``: the problem with each peer, empty if it is available."""
    found = [
        Entry("AdamW", f"torch, {form}", functools.partial(_torch_adamw, form=form))
        for form in ("fused", "foreach", "loop")
    ]
    if setting.shard is None:  # they would treat a flat tensor as one parameter
        found += [
            Entry("Lamb", "timm", _timm_lamb, problem=peers["timm"]),
            Entry("Lamb", "pytorch-optimizer", _pytorch_optimizer_lamb, problem=peers["pytorch-optimizer"]),
            Entry("Lars", "timm", _timm_lars, problem=peers["timm"]),
        ]
        if device.type == "cuda":
            found.append(Entry("Lamb", "DeepSpeed FusedLamb", _deepspeed_lamb))
    kernels = [name for name in NAMES if name != "auto" and NEEDS.get(name, device.type) == device.type]
    for name in OURS:
        for kernel in kernels:
            found.append(Entry(name, f"Bellwether, {kernel}", functools.partial(_ours, name=name, kernel=kernel)))
    return found


def _ours(setting: Setting, name: str, kernel: str) -> Callable[[], Any]:
    optimizer: ShardedOptimizer = OURS[name](setting.groups(trust_ratio=False), lr=LR, kernel=kernel)
    if setting.shard is not None:
        optimizer.use_shards([setting.shard])
    return _prepared(optimizer, setting)


def _torch_adamw(setting: Setting, form: str) -> Callable[[], Any]:
    forms: dict[str, dict[str, Any]] = {
        "fused": dict(fused=True), "foreach": dict(foreach=True), "loop": dict(foreach=False, fused=False),
    }  # fmt: skip
    return _prepared(torch.optim.AdamW(setting.groups(), lr=LR, **forms[form]), setting)


def _timm_lamb(setting: Setting) -> Callable[[], Any]:
    # Without its gradient clipping, another pass over memory; ours leave that to the engine.
    kind = importlib.import_module("timm.optim.lamb").Lamb
    return _prepared(kind(setting.groups(), lr=LR, weight_decay=0.01, max_grad_norm=None), setting)


def _timm_lars(setting: Setting) -> Callable[[], Any]:
    kind = importlib.import_module("timm.optim.lars").Lars
    return _prepared(kind(setting.groups(), lr=LR, momentum=0.9, weight_decay=1e-4), setting)


def _pytorch_optimizer_lamb(setting: Setting) -> Callable[[], Any]:
    kind = importlib.import_module("pytorch_optimizer").Lamb
    return _prepared(kind(setting.groups(adam=True), lr=LR, weight_decay=0.01), setting)


def _deepspeed_lamb(setting: Setting) -> Callable[[], Any]:
    # It does not support parameters without a trust ratio.
    kind = importlib.import_module("deepspeed.ops.lamb").FusedLamb
    return _prepared(kind(setting.groups(), lr=LR, weight_decay=0.01), setting)


def _prepared(optimizer: Optimizer, setting: Setting) -> Callable[[], Any]:
    """The step of an optimizer with its state, which is moved into the memory that all entries share."""
    optimizer.step()
    for parameter in setting.parameters:
        state = optimizer.state[parameter]
        # Counters are scalars of shape (); no parameter here is.
        moments = [name for name, t in state.items() if isinstance(t, Tensor) and t.shape == parameter.shape]
        for i, name in enumerate(sorted(moments)):
            state[name] = setting.pool.setdefault((parameter, i), state[name])
    return optimizer.step


def allocated(action: Callable[[], Any], device: torch.device) -> tuple[int, int]:
    """(peak, remaining at the end) bytes that an action has allocated with torch's allocator."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
    # Every allocation: the memory of the process would not show the reuse of freed memory.
    with _silent(), torch.autograd.profiler.profile(profile_memory=True) as profile:
        action()
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    totals = [0, *accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))]
    return max(totals), totals[-1]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Discards what the profiler's C++ code writes to stderr."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def prepare(entry: Entry, setting: Setting, device: torch.device) -> None:
    """Create an entry's optimizer and measure its memory. A failure is recorded, and the others continue."""
    if entry.problem:
        return
    made: list[Callable[[], Any]] = []
    try:
        # Excludes the pool: the state is counted before it moves there.
        pool, setting.pool = setting.pool, {}
        try:
            _, kept = allocated(lambda: made.append(entry.make(setting)), device)
        finally:
            setting.pool = pool
        del made[:]
        gc.collect()
        entry.step = entry.make(setting)
        peak, _ = allocated(entry.step, device)
        entry.extra = kept + peak - 8 * setting.numel
    except Exception as error:  # the optimizers of other packages may fail in any way; the row shows the error
        entry.problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def compete(contestants: list[Entry], rounds: int, device: torch.device) -> None:
    """Measure the times: one step of each in turn, in another order each round."""
    able = [entry for entry in contestants if entry.step is not None]
    order = random.Random(0)
    for number in range(rounds + 1):
        order.shuffle(able)
        for entry in able:
            assert entry.step is not None
            _wait(device)
            started = time.perf_counter()
            entry.step()
            _wait(device)
            if number:  # the first round warms up
                entry.seconds.append(time.perf_counter() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(setting: Setting, device: torch.device, rounds: int, peers: dict[str, str]) -> list[dict[str, Any]]:
    """The rows of a setting."""
    contestants = entries(setting, device, peers)
    for entry in contestants:
        say(f"{setting.name}: {entry.optimizer} ({entry.version})")
        prepare(entry, setting, device)
    source = torch.randn(setting.numel, device=device)
    target = torch.empty_like(source)
    copy = Entry("copy", "torch, tensor.copy_", lambda _: functools.partial(target.copy_, source))
    copy.step = copy.make(setting)
    copy.step()
    say(f"{setting.name}: {rounds} rounds")
    compete([*contestants, copy], rounds, device)

    baseline = statistics.median(contestants[0].seconds) if contestants[0].seconds else math.nan
    bandwidth = BYTES["copy"] * setting.numel / statistics.median(copy.seconds)
    rows = []
    for entry in [*contestants, copy]:
        row: dict[str, Any] = {
            "setting": setting.name, "elements": setting.numel, "optimizer": entry.optimizer, "version": entry.version,
        }  # fmt: skip
        if entry.problem:
            row["problem"] = entry.problem
        else:
            median = statistics.median(entry.seconds)
            speed = BYTES[entry.optimizer] * setting.numel / median
            low, _, high = statistics.quantiles(entry.seconds, n=4, method="inclusive")
            row |= {
                "seconds": median, "quartiles": [low, high], "ratio": median / baseline,
                "bytes_per_element": BYTES[entry.optimizer], "bytes_per_second": speed, "of_copy": speed / bandwidth,
                "extra_bytes": None if entry is copy else entry.extra, "all_seconds": entry.seconds,
            }  # fmt: skip
        rows.append(row)
    return rows


HEADER = ["optimizer", "by", "ms", "quartiles", "x fused AdamW", "B/element", "GB/s", "of copy", "extra MB"]


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table, aligned for a terminal."""
    lines = [HEADER]
    for i, row in enumerate(rows):
        if i == 0 or rows[i - 1]["setting"] != row["setting"]:
            lines.append([f"**{row['setting']}, {row['elements'] / 1e6:.1f} M**", *[""] * (len(HEADER) - 1)])
        if "problem" in row:
            lines.append([row["optimizer"], row["version"], "not run", *[""] * (len(HEADER) - 3)])
            continue
        low, high = (f"{1000 * q:.3g}" for q in row["quartiles"])
        extra = row["extra_bytes"]
        lines.append([
            row["optimizer"], row["version"], f"{1000 * row['seconds']:.1f}", f"{low} - {high}", f"{row['ratio']:.2f}",
            str(row["bytes_per_element"]), f"{row['bytes_per_second'] / 1e9:.1f}", f"{100 * row['of_copy']:.0f} %",
            "" if extra is None else f"{extra / 1e6:+.1f}",
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: list[str]) -> str:
        padded = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 2) if i < 2 else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    return "\n".join([line(lines[0]), f"|{rule}|", *map(line, lines[1:])])


def notes(rows: list[dict[str, Any]], about: dict[str, Any], device: torch.device) -> str:
    counted = "torch.cuda.max_memory_allocated" if device.type == "cuda" else "each allocation by torch's profiler"
    lines = [
        f"ms: median of {about['rounds']} rounds. A round takes one step of each optimizer of a setting in random order; all "
        "of them share weights, gradients and the memory of the moments.",
        "B/element: bytes per element that the algorithm must move in float32 (AdamW and RAdam 28; Lamb 40, because the "
        "norms must be known before the first weight is updated; Lars 28). GB/s: these bytes divided by the time, also for "
        "implementations that move more.",
        "of copy: GB/s relative to `tensor.copy_` in the same rounds, at 8 bytes per element, 4 read and 4 written."
        + (
            " On the CPU that copy goes through the caches, so the processor also reads the memory that it overwrites, which "
            "is not counted; a step overwrites only what it has read. Therefore values above 100 % occur."
            if device.type == "cpu"
            else ""
        ),
        f"extra MB: memory kept between steps plus the peak within a step, beyond AdamW's two moments ({counted}). Lars has "
        "one moment, so its value is negative.",
        "timm's Lamb runs without its gradient clipping. timm and pytorch-optimizer are not in the second setting: they would "
        "treat the flat tensor as one parameter.",
    ]
    failed: dict[str, dict[str, None]] = {}  # problem -> who has it, in order and once
    for row in rows:
        if "problem" in row:
            failed.setdefault(row["problem"], {})[f"{row['optimizer']} ({row['version']})"] = None
    lines += [f"Not run: {'; '.join(who)}: {problem}" for problem, who in failed.items()]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    footer = f"{about['date']}, commit {about['commit']}, {about['device']}, {about['threads']} threads; {versions}."
    return "\n".join(f"- {line}" for line in lines) + f"\n\n{footer}"


def describe(device: torch.device, rounds: int, peers: dict[str, str]) -> dict[str, Any]:
    versions = {"Python": platform.python_version(), "torch": torch.__version__}
    versions |= {name: version for name, version in PEERS.items() if not peers[name]}
    if "deepspeed" in sys.modules:
        versions["deepspeed"] = sys.modules["deepspeed"].__version__
    return {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "versions": versions,
    }


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "optimizers", f"scripts/{Path(__file__).name}")
        return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else "")
    except OSError:
        return "unknown"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def find_peers(wanted: bool) -> dict[str, str]:
    """Make the peers importable. Returns the problem with each, empty if there is none."""
    if not wanted:
        return dict.fromkeys(PEERS, "left out by --no-peers")
    pins = [f"{name}=={version}" for name, version in PEERS.items()]
    folder = ROOT / "build" / "-".join(["peers", *PEERS.values()])
    if not folder.exists():
        say(f"installing {' and '.join(pins)} into {folder.relative_to(ROOT)}")
        scratch = folder.with_name(f"{folder.name}.{os.getpid()}")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        try:
            ended = subprocess.run([*pip, "--target", str(scratch), *pins], capture_output=True, text=True)
            if ended.returncode:
                last = (ended.stderr.strip().splitlines() or ["pip failed"])[-1]
                return dict.fromkeys(PEERS, f"could not be installed: {last}")
            with contextlib.suppress(OSError):  # another run was faster
                scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    sys.path.append(str(folder))
    # `import timm` needs torchvision, its optimizers only torch: empty packages with the paths of the real ones.
    for name in ("timm", "timm.optim"):
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = module_from_spec(spec)
    return dict.fromkeys(PEERS, "")


def settings(size: str, device: torch.device) -> Iterator[Setting]:
    """One after the other, so that the first is freed before the second is created."""
    torch.manual_seed(0)
    for make in (model_setting, shard_setting):
        yield make(size, device)
        gc.collect()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="times of one step of each optimizer, as a table")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=21, help="steps of each entry, at least 2 (default 21)")
    parser.add_argument("--size", choices=["full", "tiny"], default="full", help="tiny is to see that it runs")
    parser.add_argument("--no-peers", action="store_true", help="leave timm and pytorch-optimizer out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all times here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds: at least 2, or there are no quartiles")
    device = torch.device(arguments.device)
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_available()):
        parser.error(f"--device {device}: must be cpu, or cuda where torch sees a GPU")

    if device.type == "cuda":  # before the peers are importable: DeepSpeed must not import a timm without torchvision
        with contextlib.suppress(Exception):  # its row shows the error
            importlib.import_module("deepspeed")
    peers = find_peers(not arguments.no_peers)
    about = describe(device, arguments.rounds, peers)
    rows: list[dict[str, Any]] = []
    for setting in settings(arguments.size, device):
        rows += measure(setting, device, arguments.rounds, peers)
    text = f"{table(rows)}\n\n{notes(rows, about, device)}\n"
    print(text, end="")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(f"# One step of each optimizer on {about['device']}\n\n{text}")


if __name__ == "__main__":
    main()
