"""Settings of a cluster: partition, modules, network interface and others, from ``slurm/site.yaml``.

Each key is also a variable of the sbatch scripts, or an option of sbatch itself, for those who submit them by hand.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from bellwether.trainer.config import ConfigError, ConfigErrors
from bellwether.trainer.config.error_messages import nearest
from bellwether.trainer.config.yaml_syntax import parse_yaml

DEFAULT = Path("slurm", "site.yaml")
EXAMPLE = Path(__file__).resolve().parents[1] / "slurm" / "site.example.yaml"  # in a checkout and in a wheel
_PROBLEMS = {
    "string_pattern_mismatch": "has characters that are not allowed here",
    "string_type": "is not text",
    "list_type": "is not a list, as in [--exclusive, --mem=0]",
    "dict_type": "is not a mapping of names to values",
    "model_type": "is not a mapping of keys to values",
}


def _text(value: Any) -> Any:
    """Convert numbers to text and join lists of words: account: 12345, NCCL_IB_DISABLE: 1, modules: [cuda, gcc]."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return " ".join(value)
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


# No line breaks: each value becomes part of one line of a script.
Line = Annotated[str, BeforeValidator(_text), Field(pattern=r"^[^\n\r]*$")]
Word = Annotated[str, BeforeValidator(_text), Field(pattern=r"^[^\s'\"]+$")]
Option = Annotated[str, Field(pattern=r"^-[^\n\r]*$")]


class Site(BaseModel):
    """Settings of a cluster. All keys are optional."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    partition: Word | None = Field(None, description="sbatch --partition (SBATCH_PARTITION)")
    account: Word | None = Field(None, description="sbatch --account (SBATCH_ACCOUNT)")
    qos: Word | None = Field(None, description="sbatch --qos (SBATCH_QOS)")
    constraint: Line | None = Field(None, description="sbatch --constraint (SBATCH_CONSTRAINT)")
    time: Word | None = Field(None, description="time limit of a job, as D-HH:MM:SS (sbatch --time)")
    gpus_per_node: Annotated[int, Field(ge=0)] | None = Field(
        None, description="GPUs and tasks per node; 0: no GPUs (sbatch --gpus-per-node, --ntasks-per-node)"
    )
    cpus_per_task: Annotated[int, Field(ge=1)] | None = Field(
        None, description="cores per task: those of a node divided by its GPUs (sbatch --cpus-per-task)"
    )
    sbatch: list[Option] = Field([], description="further options of sbatch, each as in --exclusive or --mem=0")
    modules: Line = Field("", description="environment modules to load, as in cuda/12.8 gcc (BELLWETHER_MODULES)")
    venv: Line = Field("", description="virtual environment to activate (BELLWETHER_VENV)")
    packed_env: Line = Field(
        "", description="archive of bellwether env pack, unpacked on each node (BELLWETHER_PACKED_ENV)"
    )
    node_directory: Line = Field("", description="directory on each node's own disk; /tmp (BELLWETHER_NODE_DIR)")
    container: Line = Field("", description="prefix that runs python in a container (BELLWETHER_CONTAINER)")
    image: Line = Field(
        "", description="container image of all tasks, with pyxis: srun --container-image (BELLWETHER_IMAGE)"
    )
    mounts: Line = Field("", description="host directories in that image: srun --container-mounts (BELLWETHER_MOUNTS)")
    interface: Line = Field(
        "", description="network interface for communication between ranks, as in ib0 (BELLWETHER_INTERFACE)"
    )
    srun: Line = Field("", description="further options of srun, as in --mpi=pmix (BELLWETHER_SRUN)")
    restarts: Annotated[int, Field(ge=0)] | None = Field(
        None, description="maximum number of restarts of a job (BELLWETHER_RESTARTS)"
    )
    spares: Annotated[int, Field(ge=0)] | None = Field(
        None, description="further nodes of a job, which replace bad ones (BELLWETHER_SPARES, sbatch --no-kill)"
    )
    chain: Annotated[int, Field(ge=1)] | None = Field(
        None, description="jobs to submit, each after the one before, where jobs may not be requeued"
    )
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], Line] = Field(
        {}, description="environment variables of all tasks, as in NCCL_IB_HCA: mlx5"
    )

    def with_venv(self) -> Site:
        """This site, with the virtual environment of the running Python where no environment is configured.

        `bellwether launch` may run from a virtual environment that is not activated, and in a folder without ``.venv``.
        """
        configured = self.venv or self.container or os.environ.get("BELLWETHER_VENV")
        in_venv = sys.prefix != sys.base_prefix and Path(sys.prefix, "bin", "activate").is_file()
        return self if configured or not in_venv else self.model_copy(update={"venv": sys.prefix})


def load(path: str | None = None) -> Site:
    """Load a site from a file, ``$BELLWETHER_SITE``, or ``slurm/site.yaml`` if it exists; otherwise all defaults.

    Raises:
        ConfigErrors: with a `ConfigError` for each wrong key.
    """
    named = path or os.environ.get("BELLWETHER_SITE")
    file = Path(named).expanduser() if named else DEFAULT
    if not named and not file.is_file():
        return Site()
    try:
        raw = parse_yaml(file.read_text())
    except OSError as error:
        fix = f"name a file like {EXAMPLE}"
        raise ConfigError("--site", str(file), f"cannot be read: {error.strerror}", fix) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError("--site", str(file), f"not YAML: {' '.join(str(error).split())}") from None
    try:
        site_keys = {} if raw is None else raw
        if isinstance(site_keys, dict):
            site_keys = {key: value for key, value in site_keys.items() if value is not None}
        return Site.model_validate(site_keys)
    except ValidationError as error:
        raise ConfigErrors([_to_config_error(e, str(file)) for e in error.errors(include_url=False)]) from None


def _to_config_error(error: object, source: str) -> ConfigError:
    details: dict[str, object] = dict(error)  # type: ignore[call-overload]
    path: tuple[str | int, ...] = details["loc"]  # type: ignore[assignment]
    key = ".".join(map(str, path)) or "site"
    if details["type"] == "extra_forbidden":
        return ConfigError(key, details["input"], "unknown key", nearest(key, Site.model_fields), source)
    description = Site.model_fields[str(path[0])].description if path else "write key: value lines"
    problem = _PROBLEMS.get(str(details["type"]), str(details["msg"]).lower())
    return ConfigError(key.removesuffix(".[key]"), details["input"], problem, description or "", source)
