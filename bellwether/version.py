"""The versions of bellwether and of what it runs on."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from bellwether import __version__


def code_version() -> str:
    """The package's version; in a git checkout also the commit, marked ``-dirty`` if files were changed since."""
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / ".git").exists():  # an installed package may lie inside somebody else's repository
        return __version__
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        described = subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__} ({described.stdout.strip()})"


def version_report() -> str:
    """One line for each version that a bug report needs. A package that is missing or broken is named as such."""
    rows = [("bellwether", code_version()), ("Python", platform.python_version()), *_torch_versions()]
    rows += [(name, _installed(name.lower())) for name in ("DeepSpeed", "accelerate", "transformers")]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {version}" for name, version in rows)


def _installed(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _torch_versions() -> list[tuple[str, str]]:
    try:
        import torch
    except Exception as error:  # such as an OSError for a CUDA library that is not there
        torch_version = _installed("torch")
        return [
            ("torch", torch_version if torch_version == "not installed" else f"{torch_version}, import fails: {error}")
        ]
    if torch.version.cuda is None:
        return [("torch", torch.__version__), ("CUDA", "none in this build of torch")]
    try:
        nccl = ".".join(str(part) for part in torch.cuda.nccl.version())
    except Exception as error:
        nccl = f"unknown: {error}"
    return [("torch", torch.__version__), ("CUDA", torch.version.cuda), ("NCCL", nccl)]
