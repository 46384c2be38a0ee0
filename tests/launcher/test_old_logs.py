"""Output of the ranks of old attempts is deleted, and nothing that a user has put beside it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bellwether.launcher import attempts
from bellwether.launcher.attempts import Attempt
from bellwether.trainer import run_paths
from tests.launcher.processes import finish, start


def attempt(folder: Path, job: str) -> Attempt:
    log = folder / attempts.rank0_log(job)
    log.parent.mkdir(parents=True, exist_ok=True)
    for name in ("rank0.log", "rank17.log"):
        (log.parent / name).write_text("a line")
    return Attempt(job=job, restart=0, time=0.0, nodes="", tasks=18, log=str(log), step=0)


def test_newest_jobs_of_a_run_keep_their_logs(tmp_path: Path) -> None:
    run = tmp_path / "runs/a"
    for job in ("7", "8_3", "7", "9"):  # 7 was restarted after 8_3 had started
        attempts.began(run, attempt(tmp_path, job))
    attempts.began(run, Attempt(**{**vars(attempt(tmp_path, "5")), "log": str(tmp_path / "elsewhere/rank0.log")}))
    attempt(tmp_path, "6")  # of another run
    (tmp_path / "logs/8_3/notes.txt").touch()
    attempts.prune_logs(run, 3)
    left = {str(p.relative_to(tmp_path / "logs")) for p in (tmp_path / "logs").rglob("*") if p.is_file()}
    both = {f"{job}/{name}" for job in ("5", "6", "7", "9") for name in ("rank0.log", "rank17.log")}
    assert left == both | {"8_3/notes.txt"}


def test_prune_deletes_only_what_has_our_names(tmp_path: Path) -> None:
    for folder in ("1-a", "2-a", "3-a", "mine"):
        (tmp_path / folder / "0").mkdir(parents=True)
        (tmp_path / folder / "0/stdout.log").touch()
    (tmp_path / "1-a/0/plan.txt").touch()
    (tmp_path / "1-a/empty").mkdir()
    run_paths.prune(tmp_path, re.compile(r"\d-a"), re.compile(r"\d/stdout\.log"), 1)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")}
    assert left == {
        "1-a", "1-a/0", "1-a/0/plan.txt", "1-a/empty", "3-a", "3-a/0", "3-a/0/stdout.log", "mine", "mine/0", "mine/0/stdout.log",
    }  # fmt: skip
    run_paths.prune(tmp_path / "absent", re.compile(""), re.compile(""), 1)


@pytest.mark.full
@pytest.mark.process
def test_starts_on_this_machine_leave_no_empty_files_and_the_newest_are_kept(space: Path) -> None:
    logs = space / "runs/often/logs"
    (logs / "ranks/mine").mkdir(parents=True)
    (logs / "ranks/20260101-000000-node0-0123abcd/1").mkdir(parents=True)
    (logs / "ranks/20260101-000000-node0-0123abcd/1/stderr.log").write_text("old")
    arguments = ("bellwether", "train", "quick.yaml", "--nproc", "2", "name=often", "log.keep=1", "log.report=false")
    status, _, error = finish(start(space, *arguments))
    assert status == 0, error
    files = [p for p in (logs / "ranks").rglob("*") if p.is_file()]
    assert all(p.stat().st_size for p in files)
    assert not (logs / "ranks/20260101-000000-node0-0123abcd").exists()
    assert (logs / "ranks/mine").is_dir()
