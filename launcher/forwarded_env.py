"""Which of this machine's variables a process on another one is given, where no scheduler hands them on."""

from __future__ import annotations

from collections.abc import Mapping

_FAMILIES = ("BELLWETHER_", "DS_", "FI_", "GLOO_", "HF_", "NCCL_", "OMP_", "TORCH_", "UCX_")
_ALSO = ("CXX", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "XDG_CACHE_HOME")


def forwarded_env(environment: Mapping[str, str]) -> dict[str, str]:
    """Those that the nodes need. No tokens: on a command line everybody could read them."""
    wanted = {k: v for k, v in sorted(environment.items()) if k in _ALSO or k.startswith(_FAMILIES)}
    return {key: value for key, value in wanted.items() if "TOKEN" not in key}
