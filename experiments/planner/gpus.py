"""Data sheets of GPUs, and the links of the machines that they are usually sold in."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bellwether.trainer.config import ConfigError


@dataclass(frozen=True)
class Gpu:
    """One GPU. Peaks are without structured sparsity; bandwidths are for one direction."""

    name: str
    memory: float  # GiB
    bf16: float  # TFLOP/s of the matrix units; 0: not supported
    fp16: float  # TFLOP/s of the matrix units
    fp32: float  # TFLOP/s; not TF32, which `engine.tf32` turns on
    bandwidth: float  # GB/s of its memory
    watts: float  # maximum power
    link: float  # GB/s to the other GPUs of the node
    network: float  # Gbit/s per GPU between nodes, as in the vendor's systems

    def peak(self, precision: str) -> float:
        """FLOP/s in a precision of `engine.precision`, or in tf32, which all GPUs with bf16 multiply half as fast as that."""
        tf32 = max(self.fp32, self.bf16 / 2)
        return 1e12 * {"fp32": self.fp32, "tf32": tf32, "fp16": self.fp16, "bf16": self.bf16}[precision]


# Sources: NVIDIA's data sheets of V100 (2020), A100 (2021), H100 (2023), H200 and HGX B200 (2024), L40S (2023), the Ada
# architecture's white paper (RTX 4090, fp32 accumulation), AMD's data sheet of the Instinct MI300X (2023). Network: DGX-1 to
# DGX B200, with 100, 200 and 400 Gbit/s per GPU; 100 is assumed for others. A data sheet's GB is 1e9 or 2^30 bytes; the
# numbers here are about what torch reports.
_TABLE = [
    #    name                memory bf16 fp16 fp32  GB/s  W     link net
    Gpu("v100-16gb",           15.7,   0, 125, 15.7,  900,  300, 150, 100),
    Gpu("v100",                31.7,   0, 125, 15.7,  900,  300, 150, 100),
    Gpu("a100-40gb",           39.4, 312, 312, 19.5, 1555,  400, 300, 200),
    Gpu("a100",                79.1, 312, 312, 19.5, 2039,  400, 300, 200),
    Gpu("a100-pcie",           79.1, 312, 312, 19.5, 1935,  300,  32, 200),
    Gpu("h100",                79.1, 989, 989, 67.0, 3350,  700, 450, 400),
    Gpu("h100-pcie",           79.1, 756, 756, 51.0, 2000,  350,  64, 400),
    Gpu("h200",               139.8, 989, 989, 67.0, 4800,  700, 450, 400),
    Gpu("b200",               178.0, 2250, 2250, 75.0, 7700, 1000, 900, 400),
    Gpu("l40s",                44.4, 362, 362, 91.6,  864,  350,  32, 100),
    Gpu("rtx4090",             23.5, 165, 165, 82.6, 1008,  450,  32, 100),
    Gpu("mi300x",             191.5, 1307, 1307, 163.4, 5300, 750, 448, 400),
]  # fmt: skip
GPUS = {gpu.name: gpu for gpu in _TABLE}


def find(name: str) -> Gpu:
    """Look up a GPU by name, or read a YAML file with the fields of `Gpu`; ``base: h100`` provides missing fields.

    Raises:
        ConfigError: naming the most similar name, or the fields that a file lacks.
    """
    if name.lower() in GPUS:
        return GPUS[name.lower()]
    if name.endswith((".yaml", ".yml")):
        return _read(Path(name))
    near = difflib.get_close_matches(name.lower(), GPUS, 1, 0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    advice = f"{hint}known are {', '.join(GPUS)}; or give a YAML file with {', '.join(f.name for f in fields(Gpu))}"
    raise ConfigError("--gpu", name, "is unknown", advice)


def _read(path: Path) -> Gpu:
    from bellwether.trainer.config.yaml_syntax import parse_yaml

    gpu_fields = [f.name for f in fields(Gpu)]
    try:
        raw: Any = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("--gpu", str(path), f"cannot be read: {error}") from None
    if not isinstance(raw, Mapping):
        raise ConfigError("--gpu", str(path), "is not a mapping", f"write {', '.join(gpu_fields)}")
    base = find(str(raw["base"])).__dict__ if "base" in raw else {}
    data_sheet: dict[str, Any] = {"name": path.stem, **base, **{key: raw[key] for key in raw if key != "base"}}
    wrong = sorted({*gpu_fields} ^ {*data_sheet})
    if wrong:
        problem = f"its keys differ in {', '.join(map(str, wrong))}"
        raise ConfigError("--gpu", str(path), problem, f"write {', '.join(gpu_fields)}, or base: h100 and what differs")
    for key in gpu_fields[1:]:
        if isinstance(data_sheet[key], bool) or not isinstance(data_sheet[key], int | float) or data_sheet[key] < 0:
            raise ConfigError(
                "--gpu", str(path), f"{key}: {data_sheet[key]!r} is not a number", "write a number of at least 0"
            )
    return Gpu(**{**data_sheet, "name": str(raw.get("name", path.stem))})
