"""What ranks send one another: which values and errors arrive, and that none of it is unpickled."""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from bellwether.trainer import messages
from bellwether.trainer.config import ConfigError, ConfigErrors
from bellwether.trainer.distributed import World, run_on_all_ranks, run_on_rank0
from tests.ranks import Ranks

VALUES = [None, True, 3, 0.1, math.inf, "é", [1, [2]], (1, ("a", None)), {"a": {"b": [(1, 2)]}}, Path("/x/y"), {}, ()]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_value_arrives_as_it_was_sent(value: Any) -> None:
    found = messages.decode(messages.encode(value))
    assert found == value
    assert type(found) is type(value)


def test_other_values_are_refused_by_the_sender() -> None:
    for value in (object(), {1: 2}, {"bellwether": "path"}, torch.zeros(1), b"x"):
        with pytest.raises(TypeError, match="cannot be sent between ranks"):
            messages.encode(value)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConfigError("a.b", {"c": 1}, "is wrong", "write d", "file"), ConfigError),
        (ConfigErrors([ConfigError("a", None, "x"), ConfigError("b", 1, "y")]), ConfigErrors),
        (FileExistsError(17, "File exists", "/x"), FileExistsError),
        (OSError("no space"), OSError),
        (RuntimeError("a"), RuntimeError),
        (KeyError("a"), KeyError),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), RuntimeError),  # its bytes cannot be sent
        (ConfigError("a", torch.float32, "x"), RuntimeError),
        (torch.OutOfMemoryError("no memory"), RuntimeError),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_arrives_with_its_message(error: Exception, kind: type[Exception]) -> None:
    found = messages.decode_error(messages.decode(messages.encode(messages.encode_error(error))))
    assert type(found) is kind
    assert str(error) in str(found)


def test_only_errors_can_be_named_in_a_message() -> None:
    for name in ("eval", "SystemExit", "object", "no such name"):
        with pytest.raises(TypeError, match="no error that is sent between ranks"):
            messages.decode_error([name, ["1"]])


class Unsendable:
    pass


def _on_ranks() -> list[Any]:
    import torch.distributed as dist

    unpickled: list[int] = []
    world = World(dist.get_rank(), dist.get_world_size(), 0, torch.device("cpu"))

    def fail() -> None:
        if world.rank == world.size - 1:
            raise FileExistsError(17, "File exists", "/x")

    def tell(act: Any, run: Any) -> str:
        try:
            run(world, act)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"

    with mock.patch.object(dist.distributed_c10d, "_tensor_to_object", side_effect=lambda *_: unpickled.append(1)):
        return [
            run_on_rank0(world, lambda: (world.rank, Path("a"))),
            run_on_all_ranks(world, lambda: ["x" * world.rank]),
            tell(fail, run_on_all_ranks),
            tell(lambda: Unsendable(), run_on_rank0),
            tell(lambda: Unsendable(), run_on_all_ranks),
            unpickled,
        ]


def test_ranks_agree_on_values_and_errors_without_pickle(ranks: Ranks) -> None:
    size = ranks.world_size
    for found in ranks.run(_on_ranks):
        assert found[0] == (0, Path("a"))
        assert found[1] == [["x" * rank] for rank in range(size)]
        assert found[2] == "FileExistsError: [Errno 17] File exists: '/x'"
        assert "Unsendable cannot be sent between ranks" in found[3]
        assert "Unsendable cannot be sent between ranks" in found[4]
        assert found[5] == []


def test_pickle_is_no_message() -> None:
    with pytest.raises(ValueError, match="decode"):
        messages.decode(pickle.dumps(Path("x")))


def test_no_module_unpickles_what_another_process_sent() -> None:
    root = Path(__file__).parents[2]
    forbidden = re.compile(
        r"object_list\(|_gather_object\(|pickle\.loads?\(|\.bcast\(|rdzv_backend|torch\.distributed\.run\b"
    )
    files = [
        file for name in ("trainer", "launcher", "experiments", "optimizers") for file in (root / name).rglob("*.py")
    ]
    assert len(files) > 100
    assert [str(file) for file in files if forbidden.search(file.read_text())] == []
