"""Simulates each rank of a very large run on one machine: the tables of docs/scaling.md.

    DS_ACCELERATOR=cpu .venv/bin/python scripts/simulate_scaling.py --write docs/scaling.md    # about 10 minutes, 12 GB
    DS_ACCELERATOR=cpu .venv/bin/python scripts/simulate_scaling.py --small                    # half a minute

DeepSpeed and FSDP2 are the real ones. With torch's fake process group, which has any size and whose collectives do nothing,
each process is one rank of many. Each engine is created in a separate forked process, so that none sees the state of another.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
import transformers
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import results_page
from scripts.scaling_all_ranks import LAYOUTS, all_ranks
from scripts.scaling_muon import muon_loads
from scripts.scaling_one_rank import ENGINES, one_rank
from scripts.scaling_reference import Truth, bert, some

ROOT = Path(__file__).resolve().parents[1]
WORLDS = (8, 64, 512, 4096)
BEGIN, END = "<!-- written by scripts/simulate_scaling.py -->", "<!-- end -->"


def apart(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Call a function in a forked process, which shares the model's memory and frees its own at exit."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # suppress DeepSpeed's messages
                result = function(*arguments)
            sender.send(result)
        except BaseException:
            sender.send(traceback.format_exc())

    process = context.Process(target=work)
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = f"{function.__name__}: the process died"
    process.join()
    if isinstance(result, str):
        raise RuntimeError(result)
    return result


Cuts = dict[tuple[str, int], dict[int, str]]  # engine and world -> rank -> fingerprint


def engine_table(model: nn.Module, worlds: tuple[int, ...], reduced: int) -> tuple[str, Cuts]:
    cuts: Cuts = {}
    rows = [
        ["engine", "ranks", "state a rank, MB", "shards", "slices a rank", "step() calls", "all-reduces", "their bytes",
         "of the gradients'", "attach, ms", "our tables, KB"],
    ]  # fmt: skip
    for engine in ENGINES:
        for world in worlds:
            tried = []
            for rank in some(world):
                started = time.monotonic()
                tried.append(apart(one_rank, model, engine, world, rank))
                print(f"{engine}, rank {rank} of {world}: {time.monotonic() - started:.0f} s, {tried[-1]}", flush=True)
            cuts[engine, world] = {rank: t["cut"] for rank, t in zip(some(world), tried, strict=True)}
            # A collective that only some ranks enter would hang.
            assert len({(t["calls"], t["collectives"], t["bytes"]) for t in tried}) == 1
            assert all(t["most"] <= 1 for t in tried)
            first = tried[0]
            rows.append([
                engine, f"{world:,}", _span([(t["weights"] + t["moments"]) / 1e6 for t in tried], ",.2f"),
                str(first["shards"]), _span([t["slices"] for t in tried], "d"), str(first["calls"]),
                str(first["collectives"]), f"{first['bytes']:,}", f"{first['bytes'] / reduced:.1e}",
                f"{1000 * max(t['attach'] for t in tried):.1f}", f"{max(t['tables'] for t in tried) / 1e3:,.0f}",
            ])  # fmt: skip
    return _markdown(rows), cuts


def step_table(model: nn.Module, worlds: tuple[int, ...], truth: Truth, cuts: Cuts) -> str:
    rows = [
        ["sharded as", "ranks", "slices of all ranks", "ranks without any", "each element on one rank", "trust ratios off by",
         "weights that differ", "by at most"],
    ]  # fmt: skip
    for engine in LAYOUTS:
        for world in worlds:
            started = time.monotonic()
            found = apart(all_ranks, model, engine, world, truth)
            print(f"{engine}, all {world} ranks: {time.monotonic() - started:.0f} s, {found}", flush=True)
            assert found["cuts"] == cuts[engine, world], "the engine of another rank shards otherwise"
            if engine == "ZeRO-1":
                assert cuts["ZeRO-2", world] == cuts[engine, world]
            computed = "error" in found
            rows.append([
                engine, f"{world:,}", f"{found['slices']:,}", f"{found['idle']:,}", "yes",
                f"{found['error']:.1e}" if computed else "not computed", f"{found['differ']:,}" if computed else "",
                f"{found['worst']:.1e}" if computed else "",
            ])  # fmt: skip
    return _markdown(rows)


def muon_table(model: nn.Module, worlds: tuple[int, ...]) -> str:
    rows = [
        ["sharded as", "ranks", "matrices", "ranks that own some", "largest share of the cost", "lowest possible", "elements that stay",
         "busiest rank sends, MB", "positions, MB", "owners found in, ms"],
    ]  # fmt: skip
    for engine in LAYOUTS:
        for world in worlds:
            started = time.monotonic()
            found = apart(muon_loads, model, engine, world)
            print(f"Muon, {engine}, {world} ranks: {time.monotonic() - started:.0f} s, {found}", flush=True)
            rows.append([
                engine, f"{world:,}", f"{found['matrices']:,}", f"{found['owners']:,}", f"{found['largest']:.2%}",
                f"{found['bound']:.2%}", f"{found['stay'] / found['numel']:.0%}", f"{found['sent'] / 1e6:,.1f}",
                f"{found['positions'] / 1e6:,.2f}", f"{1000 * found['seconds']:,.1f}",
            ])  # fmt: skip
    return _markdown(rows)


def _span(values: list[Any], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} - {high}"


def _markdown(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description="simulates the ranks of a very large run")
    parser.add_argument("--small", action="store_true", help="a tiny BERT and up to 64 ranks, to see that it runs")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between the markers of this file")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    # GNU's OpenMP does not survive a fork; with one thread it is never started.
    torch.set_num_threads(1)
    started = time.monotonic()
    worlds = WORLDS[:2] if arguments.small else WORLDS
    model = bert(arguments.small)
    truth = Truth.of(model)
    numel = sum(w.numel() for w in truth.weights.values())
    engines, cuts = engine_table(model, worlds, 4 * numel)
    steps = step_table(model, worlds, truth, cuts)
    muon = muon_table(model, worlds)
    text = "\n\n".join([
        f"{results_page.measured()}, DeepSpeed {deepspeed.__version__}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}: BERT, {numel:,} elements in "
        f"{len(truth.weights)} parameters, {len(truth.ratios)} of them with a trust ratio. The script took "
        f"{(time.monotonic() - started) / 60:.0f} minutes on one thread.",
        engines,
        steps,
        muon,
    ])  # fmt: skip
    print(f"\n{text}")
    if arguments.write:
        results_page.write(arguments.write, BEGIN, END, text)


if __name__ == "__main__":
    main()
