"""Selects the environment variables that processes on other machines get, where no scheduler forwards them."""

from __future__ import annotations

from collections.abc import Mapping

_PREFIXES = ("BELLWETHER_", "DS_", "FI_", "GLOO_", "HF_", "NCCL_", "OMP_", "TORCH_", "UCX_")
_NAMES = ("CXX", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "XDG_CACHE_HOME")


def forwarded_env(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to forward, sorted by name. No tokens: command lines are readable by every user."""
    selected = {k: v for k, v in sorted(environment.items()) if k in _NAMES or k.startswith(_PREFIXES)}
    return {name: value for name, value in selected.items() if "TOKEN" not in name}
