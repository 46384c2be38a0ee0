"""The entries of the optimizer benchmark: ours, torch's, DeepSpeed's, and those of timm and pytorch-optimizer."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bellwether.optimizers import AdamW, Lamb, Lars, Muon, RAdam, ShardedOptimizer
from bellwether.optimizers.kernels import NAMES
from scripts.bench_settings import Setting

ROOT = Path(__file__).resolve().parents[1]
PEERS = {"timm": "1.0.31", "pytorch-optimizer": "4.1.0"}

OURS: dict[str, type] = {"AdamW": AdamW, "RAdam": RAdam, "Lamb": Lamb, "Lars": Lars}
NEEDS = {"cpu": "cpu", "triton": "cuda"}  # kernels that run on one kind of device alone

LR = 1e-6  # so small that the weights hardly change under any rule, and stay realistic


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

    def bytes_per_element(self, element: int) -> int:
        """Least bytes that a step has to move for each element, of ``element`` bytes in weights and gradients.

        Our moments are float32, those of others have the dtype of the weights.
        """
        moment = 4 if self.version.startswith("Bellwether") else element
        return {
            "AdamW": 3 * element + 4 * moment,  # reads w g m v, writes w m v
            "RAdam": 3 * element + 4 * moment,
            # The norms have to be known before the first weight changes, and a model does not fit into a cache.
            "Lamb": 4 * element + 6 * moment,  # reads w g m v, writes m v; then reads w m v, writes w
            "Lars": 5 * element + 2 * moment,  # reads w g; then reads w g m, writes w m
            "Muon": 3 * element + 2 * moment,  # reads w g m, writes w m; the time is that of Newton-Schulz
            "copy": 8,
        }[self.optimizer]


def entries(setting: Setting, device: torch.device, peers: dict[str, str]) -> list[Entry]:
    """The entries of a setting; ``peers``: the problem with each peer, empty if it is available."""
    if setting.for_muon:
        return [
            Entry("AdamW", "torch, fused", functools.partial(_torch_adamw, form="fused")),
            Entry("Muon", "torch", _torch_muon),
            *(
                Entry("Muon", f"Bellwether, {dtype}", functools.partial(_muon, dtype=dtype))
                for dtype in ("bf16", "fp32")
            ),
        ]
    found = [
        Entry("AdamW", f"torch, {form}", functools.partial(_torch_adamw, form=form))
        for form in (("fused", "foreach", "loop") if setting.all_entries else ("fused", "foreach"))
    ]
    if setting.shard is None and setting.all_entries:  # they would treat a flat tensor as one parameter
        found += [
            Entry("Lamb", "timm", _timm_lamb, problem=peers["timm"]),
            Entry("Lamb", "pytorch-optimizer", _pytorch_optimizer_lamb, problem=peers["pytorch-optimizer"]),
            Entry("Lars", "timm", _timm_lars, problem=peers["timm"]),
        ]
        if device.type == "cuda":
            found.append(Entry("Lamb", "DeepSpeed FusedLamb", _deepspeed_lamb, problem=peers.get("deepspeed", "")))
    kernels = [name for name in NAMES if name != "auto" and NEEDS.get(name, device.type) == device.type]
    if not setting.all_entries:
        kernels.remove("reference")
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


def _torch_muon(setting: Setting) -> Callable[[], Any]:
    return _prepared(torch.optim.Muon(setting.groups(), lr=LR), setting)


def _muon(setting: Setting, dtype: str) -> Callable[[], Any]:
    return _prepared(Muon(setting.groups(), lr=LR, ns_dtype=dtype), setting)


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
            state[name] = setting.pool.setdefault((parameter, i, state[name].dtype), state[name])
    return optimizer.step


def find_peers(wanted: bool) -> dict[str, str]:
    """Make the peers importable. Returns the problem with each, empty if there is none."""
    if not wanted:
        return dict.fromkeys(PEERS, "left out by --no-peers")
    pins = [f"{name}=={version}" for name, version in PEERS.items()]
    folder = ROOT / "build" / "-".join(["peers", *PEERS.values()])
    if not folder.exists():
        print(f"installing {' and '.join(pins)} into {folder.relative_to(ROOT)}", file=sys.stderr, flush=True)
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
