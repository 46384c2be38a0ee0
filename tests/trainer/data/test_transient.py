from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bellwether.cli import main
from bellwether.launcher.attempts import Attempt
from bellwether.launcher.decision import REQUEUE, decide
from bellwether.trainer import file_errors, signals
from bellwether.trainer.config.errors import ConfigError
from bellwether.trainer.data import corpus, load, loader, transient
from bellwether.trainer.data.images import ImageData
from bellwether.trainer.data.text import TextData
from bellwether.trainer.messages import decode_error, encode_error


class Response:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class HubError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.response = Response(status)


def caused(error: Exception) -> ConfigError:
    wrapped = ConfigError("data.source", "a", "cannot be read")
    wrapped.__cause__ = error
    return wrapped


@pytest.mark.parametrize("error, expected", [
    (OSError(errno.ESTALE, "stale"), True),
    (OSError(errno.EIO, "I/O"), True),
    (TimeoutError("slow"), True),
    (ConnectionResetError(errno.ECONNRESET, "reset"), True),
    (HubError(429), True),
    (HubError(503), True),
    (HubError(404), False),
    (HubError(401), False),
    (caused(OSError(errno.EIO, "I/O")), True),
    (caused(FileNotFoundError(errno.ENOENT, "none")), False),
    (FileNotFoundError(errno.ENOENT, "none"), False),
    (OSError(errno.ENOSPC, "full"), False),
    (PermissionError(errno.EACCES, "no"), False),
    (ValueError("a bug"), False),
])  # fmt: skip
def test_errors_that_are_transient(error: Exception, expected: bool) -> None:
    assert (transient.transient_cause(error) is not None) == expected


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        found.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(transient.time, "sleep", sleep)
    monkeypatch.setattr(transient.time, "monotonic", lambda: clock[0])
    return found


def failing(times: int, error: Exception) -> Callable[[], str]:
    left = [times]

    def act() -> str:
        if left[0]:
            left[0] -= 1
            raise error
        return "read"

    return act


def test_pauses_grow_until_the_read_works(pauses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    assert transient.retrying(60, failing(4, OSError(errno.ESTALE, "stale", "a.txt"))) == "read"
    assert pauses == [0.25, 0.5, 1, 2]
    assert "stale: a.txt; tried again in 0.2 s (data.retry)" in caplog.text


def test_read_that_keeps_failing_ends_as_such(pauses: list[float]) -> None:
    with pytest.raises(OSError, match=r"I/O: a.txt, also after 10 s of data.retry") as caught:
        transient.retrying(10, failing(99, caused(OSError(errno.EIO, "I/O", "a.txt"))))
    assert caught.value.errno == signals.READ_FAILED
    assert 7 < sum(pauses) <= 10
    text = file_errors.explain(caught.value)
    assert text is not None
    assert "the same command tries again" in text
    sent = decode_error(encode_error(caught.value))
    assert isinstance(sent, OSError), "ranks report it as what it is"
    assert sent.errno == signals.READ_FAILED
    for other in (ValueError("a bug"), caused(PermissionError(errno.EACCES, "no"))):
        with pytest.raises(type(other)):
            transient.retrying(10, failing(99, other))


def test_job_starts_again_after_a_failed_read() -> None:
    history = [Attempt("1", n, 0.0, "", 1, "", 0, status=signals.IO, reached=0, saved=0) for n in range(2)]
    decision = decide(history, signals.IO, finished=False, restarts=9)
    assert (decision.action, decision.stopped) == (REQUEUE, False)
    assert "data could not be read" in decision.reason


def test_text_is_read_again_after_errors_of_the_disk(
    text_config: Callable[..., TextData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, failures = corpus._read_files, [OSError(errno.EIO, "I/O"), OSError(errno.ESTALE, "stale")]

    def read(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return original(*arguments)

    monkeypatch.setattr(corpus, "_read_files", read)
    assert (
        len(
            load(
                text_config(cache=str(tmp_path)),
            ).train
        )
        > 0
    )
    assert not failures


def test_folder_may_be_away_for_a_moment(tmp_path: Path) -> None:
    away, here = tmp_path / "away", tmp_path / "here"
    away.mkdir()
    (away / "a.txt").write_text("\n".join(f"line {i} of some" for i in range(200)))
    threading.Timer(0.7, lambda: away.rename(here)).start()
    config = TextData(
        kind="text", source=str(here), cache=str(tmp_path / "c"), vocabulary_size=64, sequence_length=8, max_unknown=1
    )
    assert load(config).summary is not None


def test_images_may_be_away_for_a_moment_during_training(tmp_path: Path) -> None:
    from PIL import Image

    for label in ("cat", "dog"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for index in range(10):
            pixels = np.random.default_rng((index, label == "cat")).integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / label / f"{index}.png")
    keys: dict[str, Any] = {
        "source": str(tmp_path / "pictures"),
        "cache": str(tmp_path / "c"),
        "size": 8,
        "crop": "resized",
    }
    for retry in (30.0, 0.0):
        samples = load(ImageData(kind="images", **keys, retry=retry)).validation
        (tmp_path / "pictures").rename(tmp_path / "away")
        back = threading.Timer(0.7, lambda: (tmp_path / "away").rename(tmp_path / "pictures"))
        back.start()
        batches = loader.evaluation_batches(samples, limit=None, micro=1, rank=0, world_size=1, workers=0)
        if retry:
            assert len(list(batches)) == len(samples)
        else:
            with pytest.raises(OSError, match=r"data\.retry") as caught:
                next(batches)
            assert caught.value.errno == signals.READ_FAILED
        back.join()


def test_missing_path_is_still_a_mistake(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    overrides = [f"data.source={tmp_path}/nowhere/*.txt", "data.retry=0.3", f"data.cache={tmp_path}"]
    assert main(["data", "bert-tiny", *overrides]) == 2
    assert "no such file, folder or glob" in capfd.readouterr().err
    assert time.monotonic() - began < 10


def test_run_ends_with_a_status_of_its_own(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from bellwether.trainer import __main__ as trainer
    from bellwether.trainer import run

    def fail(config: Any) -> int:
        raise OSError(signals.READ_FAILED, "I/O: a.txt, also after 10 s of data.retry", "a.txt")

    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    monkeypatch.setattr(run, "run", fail)
    assert trainer._run("bert-tiny", []) == signals.IO == 74
