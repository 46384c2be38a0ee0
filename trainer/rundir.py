"""The run directory: made once, found again after every restart, never shared by two different runs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from trainer import __version__, checkpoint
from trainer.config import Config, ConfigError, ConfigErrors, dump, to_yaml

# What may change when a run goes on: who computes which part, how often something is written, and where it stops.
FREE = (
    "resume",
    "runs",
    "stop_after",
    "engine",
    "checkpoint",
    "evaluate",
    "log",
    "batch.micro",
    "data.workers",
    "data.cache",
)


def prepare(config: Config) -> Path:
    """Make the run directory, or check that it belongs to this config. Writes ``config.yaml``.

    Raises:
        ConfigErrors: if the directory holds another run, with a line for each key that differs.
        ConfigError: if it holds something else, or a run that ``resume: never`` must not go on with.
    """
    run = Path(config.runs) / config.name
    file = run / "config.yaml"
    # A run that was refused before its first step may be mended under the same name.
    begun = (run / "metrics.jsonl").exists() or checkpoint.newest(run / "checkpoints") is not None
    if file.is_file() and begun:
        _same_run(config, run, yaml.safe_load(file.read_text()) or {})
        if config.resume == "never":
            advice = "choose another name=..., or write resume=auto to go on with it"
            raise ConfigError("resume", "never", f"{run} already holds a run", advice)
    elif not file.is_file() and run.exists() and any(run.iterdir()):
        raise ConfigError(
            "name", config.name, f"{run} exists and holds no run of Bellwether", "choose another name=..."
        )
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "logs").mkdir(exist_ok=True)
    partial = run / "config.yaml.partial"
    partial.write_text(f"# bellwether {code_version()}\n{to_yaml(config)}")
    partial.rename(file)
    return run


def start_from(config: Config, run: Path) -> Path | None:
    """The checkpoint to begin with: the run's own newest, else the one that ``resume`` names, else none."""
    own = checkpoint.newest(run / "checkpoints")
    if own is not None or config.resume in ("auto", "never"):
        return own
    path = Path(config.resume).expanduser()
    inside = checkpoint.newest(path / "checkpoints") or checkpoint.newest(path)
    if not (path / "manifest.json").is_file() and inside is None:
        raise ConfigError(
            "resume", config.resume, "no checkpoint there", "write auto, never, or a checkpoint's directory"
        )
    return inside or path


def code_version() -> str:
    """The package's version, with the commit where it runs from a git checkout."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__} ({commit})"


def _same_run(config: Config, run: Path, there: dict[str, Any]) -> None:
    old, new = _flat(there), _flat(dump(config))
    errors = [
        ConfigError(
            key,
            new.get(key),
            f"{run} was made with {old.get(key)!r}",
            "set it back to go on, or choose another name=...",
        )
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    if errors:
        raise ConfigErrors(errors)


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    """Leaves by dotted path, without those that are free to change (in phases too)."""
    key = place.split("].", 1)[-1]
    if any(key == free or key.startswith(f"{free}.") for free in FREE):
        return {}
    if isinstance(value, dict) and (value or not place):
        return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{place}.{name}".lstrip(".")).items()}
    if place == "phases":
        return {k: v for i, inner in enumerate(value) for k, v in _flat(inner, f"phases[{i}]").items()}
    return {place: value}
