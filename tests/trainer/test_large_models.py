"""A large encoder on two ranks, from nothing through its first update: no rank ever holds the whole, counted in bytes."""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bellwether.trainer import models
from bellwether.trainer.config import Config, validate
from bellwether.trainer.data import Dataset
from bellwether.trainer.distributed import World
from bellwether.trainer.engine import build, partitioned
from bellwether.trainer.memory.live_bytes import LiveBytes
from bellwether.trainer.models.partitioned import numel
from bellwether.trainer.phases import plan
from tests.precision import skip_without
from tests.ranks import Ranks
from tests.tiers import covering
from tests.trainer.runs import text

WORLD = 2
MODELS: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 512, "vocab_size": 1000},
    "billion": {
        "hidden_size": 1600, "num_hidden_layers": 32, "num_attention_heads": 25, "intermediate_size": 6400, "vocab_size": 32000,
    },
}  # fmt: skip
# What is neither of the model nor of its training, by size: activations of a few tokens, and inside a process also the allocator's
# leftovers and the pages of libraries.
REST = {"small": 1_000_000, "billion": 50_000_000}
OF_A_PROCESS = 300_000_000
_M_MMAP_THRESHOLD = -3  # of malloc.h


def large(size: str, workspace: Path, init: Path | None) -> Config:
    """Of bf16 weights, fp32 masters and gradients, and SGD's momentum."""
    model: dict[str, Any] = {"kind": "masked-lm", "config": {"model_type": "bert", **MODELS[size]}}
    if init is not None:
        model = {"kind": "masked-lm", "init": str(init)}
    # Whole at a time in the passes: the largest tensor, and what its neighbours prefetch. DeepSpeed's default is 1e9 elements.
    limits = {
        f"stage3_{key}": largest(size) for key in ("max_live_parameters", "max_reuse_distance", "prefetch_bucket_size")
    }
    zero = {
        **limits,
        "sub_group_size": largest(size),
        "reduce_bucket_size": largest(size),
        "stage3_param_persistence_threshold": 0,
    }
    raw = text(
        workspace, "unused", optimizer={"name": "sgd", "lr": 1e-3, "momentum": 0.9}, batch={"global": WORLD, "micro": 1},
        engine={"stage": 3, "precision": "bf16", "deepspeed": {"zero_optimization": zero}},
    )  # fmt: skip
    return validate({**raw, "model": model})


def largest(size: str) -> int:
    """The elements of the largest tensor, the embedding of the vocabulary or a matrix of a layer."""
    keys = MODELS[size]
    return int(keys["hidden_size"] * max(keys["vocab_size"], keys["intermediate_size"]))


def bound(size: str, elements: int) -> int:
    """Bytes of a rank at any moment: its part of the weights, masters, gradients and momentum, and a few tensors whole."""
    part, whole = elements / WORLD, largest(size)
    return int((2 + 4 + 4 + 4) * part + 4 * 4 * whole + REST[size])


def first_step(size: str, workspace: Path, init: Path | None) -> dict[str, Any]:
    """Called by all ranks together."""
    samples: Any = None
    config = large(size, workspace, init)
    (phase,) = plan([config], WORLD, [1000])
    live, found = LiveBytes(), dict[str, Any]()
    with live, private_bytes() as private:
        torch.manual_seed(0)
        with partitioned(phase):
            task = models.build(config.model, Dataset(samples, samples, MODELS[size]["vocab_size"]))
        found["built"] = live.peak
        found["wrong"] = [] if init is None else [name for name, p in task.named_parameters() if not _holds(name, p)]
        engine = build(task, phase, World(torch.distributed.get_rank(), WORLD, 0, torch.device("cpu")))
        found["started"] = live.peak
        ids = torch.arange(8).view(1, 8)
        batch = {"input_ids": ids, "masked_positions": torch.tensor([[2, 5]]), "labels": torch.tensor([[3, 4]])}
        found["loss"] = float(engine.train_step([batch]).loss)
        found |= {"peak": live.peak, "elements": sum(map(numel, task.parameters()))}
    engine.destroy()
    return {**found, "private": private[0]}


@contextmanager
def private_bytes() -> Iterator[list[int]]:
    """How far the memory of this process grows inside, without the files that it maps: sampled.

    By itself glibc keeps freed tensors of up to 32 MB for later ones: a third more than the tensors take, which is not counted here.
    """
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**20)

    def now() -> int:
        memory = psutil.Process().memory_info()
        return int(memory.rss - memory.shared)

    before, most, ended = now(), [0], threading.Event()

    def sample() -> None:
        while not ended.wait(0.02):
            most[0] = max(most[0], now() - before)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def _value(name: str) -> float:
    """Of all elements of a tensor, exact in bf16."""
    return (1 + len(name) % 7) / 64


def _holds(name: str, parameter: Any) -> bool:
    part = parameter.ds_tensor
    return bool((part[: parameter.ds_numel // WORLD] == _value(name.removeprefix("model."))).all())


def write_pretrained(folder: Path, size: str) -> None:
    """Weights in a file for each layer, of which no process ever holds more than one."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(**MODELS[size])
    with torch.device("meta"):
        model: nn.Module = BertForMaskedLM(config)
    layers: dict[str, list[str]] = {}
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for name in shapes:
        layers.setdefault(name.split(".attention.")[0].split(".intermediate.")[0].split(".output.")[0], []).append(name)
    places: dict[str, str] = {}
    for number, names in enumerate(layers.values()):
        file = f"model-{number:05d}.safetensors"
        save_file({name: torch.full(shapes[name], _value(name), dtype=torch.bfloat16) for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    config.save_pretrained(folder)


@covering(lambda size: size == "small")
@pytest.mark.parametrize("ranks", [WORLD], indirect=True)
@pytest.mark.parametrize("weights", ["fresh", "pretrained"])
@pytest.mark.parametrize("size", MODELS)
def test_rank_holds_its_part_and_a_few_tensors_through_the_first_update(
    ranks: Ranks, workspace: Path, tmp_path: Path, size: str, weights: str
) -> None:
    skip_without("bf16", ranks)
    needed = WORLD * (bound(size, 1_050_000_000) + OF_A_PROCESS)
    if size == "billion" and psutil.virtual_memory().available < 1.1 * needed:
        pytest.skip(f"needs {1.1 * needed / 1e9:.0f} GB of memory")
    init = tmp_path if weights == "pretrained" else None
    if init is not None:
        write_pretrained(init, size)
    for found in ranks.run(first_step, size, workspace, init, timeout=1200):
        assert found["wrong"] == []
        assert found["elements"] > {"small": 1e6, "billion": 1e9}[size]
        assert found["built"] < 4 * found["elements"] / WORLD + 3 * 4 * largest(size) + REST[size]
        assert found["peak"] < bound(size, found["elements"])
        assert found["peak"] < 14 * found["elements"] * 0.7, "less than a copy of everything"
        assert found["private"] < bound(size, found["elements"]) + OF_A_PROCESS
        assert 0 < found["loss"] < 20
