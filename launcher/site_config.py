"""What differs from one cluster to the next, in one file: ``slurm/site.yaml``, beside the sbatch scripts.

Each key is also a variable of the sbatch scripts (or an option of sbatch itself), for those who submit them by hand.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bellwether.trainer.config import ConfigError, ConfigErrors
from bellwether.trainer.config.error_messages import nearest
from bellwether.trainer.config.load import parse_yaml

DEFAULT = Path("slurm", "site.yaml")
_PROBLEMS = {
    "string_pattern_mismatch": "has a form that cannot be used here",
    "string_type": "is no text",
    "list_type": "is no list, as in [--exclusive, --mem=0]",
    "dict_type": "is no mapping of names to values",
    "model_type": "is no mapping of keys to values",
}


def _text(value: Any) -> Any:
    """Numbers are text here, and a list is its words: account: 12345, NCCL_IB_DISABLE: 1, modules: [cuda, gcc]."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return " ".join(value)
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


# No line breaks: each of these becomes part of one line of a script.
Line = Annotated[str, BeforeValidator(_text), Field(pattern=r"^[^\n\r]*$")]
Word = Annotated[str, BeforeValidator(_text), Field(pattern=r"^[^\s'\"]+$")]
Option = Annotated[str, Field(pattern=r"^-[^\n\r]*$")]


class Site(BaseModel):
    """A cluster's ways. All keys may be left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    partition: Word | None = Field(None, description="sbatch --partition (SBATCH_PARTITION)")
    account: Word | None = Field(None, description="sbatch --account (SBATCH_ACCOUNT)")
    qos: Word | None = Field(None, description="sbatch --qos (SBATCH_QOS)")
    constraint: Line | None = Field(None, description="sbatch --constraint (SBATCH_CONSTRAINT)")
    time: Word | None = Field(None, description="longest time of a job, as D-HH:MM:SS (sbatch --time)")
    gpus_per_node: Annotated[int, Field(ge=0)] | None = Field(
        None, description="GPUs, and tasks, a node; 0: none (sbatch --gpus-per-node, --ntasks-per-node)"
    )
    cpus_per_task: Annotated[int, Field(ge=1)] | None = Field(
        None, description="cores a task: those of a node divided by its GPUs (sbatch --cpus-per-task)"
    )
    sbatch: list[Option] = Field([], description="further options of sbatch, each as in --exclusive or --mem=0")
    modules: Line = Field("", description="environment modules to load, as in cuda/12.8 gcc (BELLWETHER_MODULES)")
    venv: Line = Field("", description="virtual environment to activate (BELLWETHER_VENV)")
    container: Line = Field("", description="what stands before python to run it in a container (BELLWETHER_CONTAINER)")
    interface: Line = Field("", description="network interface that ranks meet on, as in ib0 (BELLWETHER_INTERFACE)")
    srun: Line = Field("", description="further options of srun, as in --mpi=pmix (BELLWETHER_SRUN)")
    restarts: Annotated[int, Field(ge=0)] | None = Field(
        None, description="how often a job may start again (BELLWETHER_RESTARTS)"
    )
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], Line] = Field(
        {}, description="variables for all tasks, as in NCCL_IB_HCA: mlx5"
    )


def load(path: str | None = None) -> Site:
    """The site of a file, of ``$BELLWETHER_SITE``, of ``slurm/site.yaml`` where there is one, or of none: all defaults.

    Raises:
        ConfigErrors: with one `ConfigError` for each thing that is wrong.
    """
    named = path or os.environ.get("BELLWETHER_SITE")
    file = Path(named).expanduser() if named else DEFAULT
    if not named and not file.is_file():
        return Site()
    try:
        raw = parse_yaml(file.read_text())
    except OSError as error:
        advice = "name a file like slurm/site.example.yaml"
        raise ConfigError("--site", str(file), f"cannot be read: {error.strerror}", advice) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError("--site", str(file), f"not YAML: {' '.join(str(error).split())}") from None
    try:
        given = {} if raw is None else raw
        if isinstance(given, dict):
            given = {key: value for key, value in given.items() if value is not None}
        return Site.model_validate(given)
    except ValidationError as error:
        raise ConfigErrors([_explain(e, str(file)) for e in error.errors(include_url=False)]) from None


def _explain(error: object, source: str) -> ConfigError:
    found: dict[str, object] = dict(error)  # type: ignore[call-overload]
    place: tuple[str | int, ...] = found["loc"]  # type: ignore[assignment]
    key = ".".join(map(str, place)) or "site"
    if found["type"] == "extra_forbidden":
        return ConfigError(key, found["input"], "there is no such key", nearest(key, Site.model_fields), source)
    about = Site.model_fields[str(place[0])].description if place else "write key: value lines"
    said = _PROBLEMS.get(str(found["type"]), str(found["msg"]).lower())
    return ConfigError(key.removesuffix(".[key]"), found["input"], said, about or "", source)
