"""What the manifest of a checkpoint costs at many ranks, in format 1 and in format 2: a table of docs/scaling.md.

    .venv/bin/python scripts/simulate_checkpoints.py              # 1,024 ranks, about a minute and 1 GB below the temporary directory
    .venv/bin/python scripts/simulate_checkpoints.py --ranks 64

writes the files that the ranks of a ZeRO-3 run of BERT-large would write, with the same slices but a few elements in each, and
measures what rank 0 (write) and every rank (the rest) do with them, in seconds of one core. After a restart on another number of
ranks, the ranks of format 2 share the last column's work.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bellwether.trainer.checkpoint import Manifest, Position
from bellwether.trainer.checkpoint.slices import SliceIndex, of_checkpoint, of_file

PARAMETERS = 398  # of BERT-large
KINDS = ("weight", "exp_avg", "exp_avg_sq")


def seconds(act: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """The least CPU time of some calls, which other programs do not lengthen, and what the last one returned."""
    times, result = [], None
    for _ in range(repeats):
        began = time.process_time()
        result = act()
        times.append(time.process_time() - began)
    return min(times), result


def write_files(folder: Path, ranks: int) -> dict[str, dict[str, Any]]:
    """The files of all ranks; returns their entries in a manifest of format 2."""
    entries: dict[str, dict[str, Any]] = {}
    for rank in range(ranks):
        tensors = {
            f"{kind}|encoder.layer.parameter.number.{index}.weight|{rank * 2}": torch.zeros(2)
            for index in range(PARAMETERS)
            for kind in KINDS
        }
        file = folder / f"rank-{rank:05d}.safetensors"
        save_file(tensors, file)
        entries[file.name] = {"bytes": file.stat().st_size, "xxh3_128": "0" * 32}
    return entries


def manifest(ranks: int, files: dict[str, Any], version: int) -> Manifest:
    shapes = {
        f"encoder.layer.parameter.number.{i}.weight": {"shape": [ranks * 2], "step": 1.0} for i in range(PARAMETERS)
    }
    return Manifest(Position(1, 8, 0), "0", ranks, "Lamb", ["d"], list(KINDS[1:]), shapes, files, {}, format=version)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=1024)
    ranks = parser.parse_args().ranks
    folder = Path(tempfile.mkdtemp(prefix="checkpoints-"))
    try:
        files = write_files(folder, ranks)
        pieces = {
            name: {**about, "pieces": {row[0]: [[row[1], row[2]]] for row in of_file(folder, name)}}
            for name, about in files.items()
        }
        rows = []
        for version, entries in (1, pieces), (2, files):
            content = manifest(ranks, entries, version)
            writing, _ = seconds(lambda content=content: content.write(folder))  # type: ignore[misc]
            size = (folder / "manifest.json").stat().st_size
            text = (folder / "manifest.json").read_text()
            parsing, _ = seconds(lambda text=text: Manifest.from_json(json.loads(text)))  # type: ignore[misc]
            if version == 1:
                same, index = seconds(lambda content=content: of_checkpoint(folder, content), 1)  # type: ignore[misc]
                other = same
            else:
                own = f"rank-{ranks // 2:05d}.safetensors"
                same, _ = seconds(lambda own=own: SliceIndex(of_file(folder, own)))  # type: ignore[misc]
                other, index = seconds(lambda content=content: of_checkpoint(folder, content), 1)  # type: ignore[misc]
            assert len(list(index.overlapping("encoder.layer.parameter.number.7.weight", 0, 2 * ranks))) == ranks
            rows.append((version, size, writing, parsing, same, other))
        deleting, _ = seconds(lambda: shutil.rmtree(folder), 1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(
        f"{ranks:,} ranks, {PARAMETERS} parameters, {PARAMETERS * ranks:,} slices; a checkpoint is deleted in {deleting:.2f} s\n"
    )
    print("| format | manifest, MB | write, s | parse, s | find slices: same ranks, s | all files' slices, s |")
    print("|--------|--------------|----------|----------|----------------------------|----------------------|")
    for version, size, *times in rows:
        print(f"| {version} | {size / 1e6:.2f} | " + " | ".join(f"{value:.3f}" for value in times) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
