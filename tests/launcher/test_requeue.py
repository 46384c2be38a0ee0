"""The decision whether a job is requeued, from the record of its attempts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bellwether.launcher import attempts, requeue, resubmit
from bellwether.launcher.attempts import Attempt
from bellwether.launcher.decision import EXIT, REQUEUE, RETRY, decide, suspects
from bellwether.launcher.doctor.protocol import PREFIX
from bellwether.launcher.outcome import true_status
from bellwether.launcher.placement import RUN, bad_nodes, place
from bellwether.launcher.slurm_job import Job
from bellwether.launcher.srun_messages import first_failure
from bellwether.trainer import run_lock
from bellwether.trainer.config import ConfigError, load

RUNNING = "JobId=7 JobState=RUNNING Reason=None RunTime=00:10:00 TimeLimit=01:00:00"
ENDING = "JobId=7 JobState=RUNNING Reason=None RunTime=00:56:00 TimeLimit=01:00:00"
CANCELLED = "JobId=7 JobState=COMPLETING Reason=None RunTime=00:10:00 TimeLimit=1-00:00:00"
OVER = "JobId=7 JobState=COMPLETING Reason=None RunTime=1-00:00:03 TimeLimit=1-00:00:00"


def attempt(
    status: int | None, reached: int = 0, saved: int = 0, slack: int = 0, on: str = "", ranks: tuple[int, ...] = ()
) -> Attempt:
    return Attempt(
        job="7", restart=0, time=0.0, nodes="n[1-2]", tasks=2, log="", step=0, status=status, reached=reached,
        saved=saved, slack=slack, failed_on=tuple(on.split()), failed_ranks=ranks,
    )  # fmt: skip


# name -> attempts, status, what scontrol shows, action, exit code, words of the reason
CASES = {
    "finished": ([attempt(0, 9, 9)], 0, RUNNING, EXIT, 0, "stopped where"),
    "a user's error": ([attempt(2)], 2, RUNNING, EXIT, 2, "config"),
    "saved": ([attempt(75, 50, 50)], 75, RUNNING, REQUEUE, 0, "saved at step 50"),
    "saved, then cancelled": ([attempt(75, 50, 50)], 75, CANCELLED, EXIT, 1, "cancelled"),
    "killed, then cancelled": ([attempt(137, 50, 40)], 137, CANCELLED, EXIT, 137, "cancelled"),
    "killed at the time limit": ([attempt(137, 50, 40)], 137, OVER, REQUEUE, 0, "retries from step 40"),
    "requeued by SLURM": ([attempt(1, 50, 40)], 1, f"{CANCELLED} Restarts=1", EXIT, 1, "SLURM itself has requeued"),
    "one failure": ([attempt(1, 50, 40)], 1, RUNNING, RETRY, 0, "status 1 at step 50"),
    "one failure, no limit": ([attempt(1, 50, 40)], 1, "JobState=RUNNING TimeLimit=UNLIMITED", RETRY, 0, "status 1"),
    "shortly before the limit": ([attempt(1, 50, 40)], 1, ENDING, REQUEUE, 0, "status 1 at step 50"),
    "no answer from scontrol": ([attempt(1, 50, 40)], 1, "", REQUEUE, 0, "status 1 at step 50"),
    "twice at one step": ([attempt(1, 50, 40), attempt(1, 50, 40)], 1, RUNNING, EXIT, 1, "failed twice at step 50"),
    "on two nodes": ([attempt(1, 50, 40, on="n1"), attempt(1, 50, 40, on="n2", ranks=(1,))], 1, RUNNING, EXIT, 1,
                     "see the log of rank 1 on n2"),
    "on the same node": ([attempt(1, 50, 40, on="n2"), attempt(1, 50, 40, on="n2", ranks=(2, 3))], 1, RUNNING, RETRY, 0,
                         "(ranks 2, 3 on n2)"),
    "on one node known, one not": ([attempt(1, 50, 40, on="n2"), attempt(1, 50, 40)], 1, RUNNING, EXIT, 1, "twice"),
    "twice there, then elsewhere": ([attempt(1, 50, 40, on="n2")] * 2 + [attempt(1, 50, 40, on="n1")], 1, RUNNING, EXIT, 1,
                                    "failed twice"),
    "within the slack": ([attempt(137, 48, 40, slack=3), attempt(137, 50, 40)], 137, RUNNING, EXIT, 137, "failed twice"),
    "beyond the slack": ([attempt(137, 46, 40, slack=3), attempt(137, 50, 40)], 137, RUNNING, RETRY, 0, "retries from"),
    "a newer checkpoint": ([attempt(1, 50, 40), attempt(1, 50, 50)], 1, RUNNING, RETRY, 0, "retries from step 50"),
    "a signal between": ([attempt(1, 50, 40), attempt(75, 50, 50), attempt(1, 50, 50)], 1, RUNNING, RETRY, 0, "retries"),
    "a lost node, twice": ([attempt(76, 50, 40), attempt(76, 50, 40, on="n2")], 76, RUNNING, RETRY, 0, "lost n2 at step 50"),
    "no progress": ([attempt(76, 50, 0)] * 5, 76, RUNNING, EXIT, 76, "5 attempts without a newer checkpoint"),
    "late progress": ([attempt(76, 50, 0)] * 4 + [attempt(76, 60, 60)], 76, RUNNING, RETRY, 0, "resumes from step 60"),
    "after an end without record": ([attempt(None, 50, 40), attempt(1, 50, 40)], 1, RUNNING, RETRY, 0, "retries from"),
    "no restarts left": ([attempt(75, n, n) for n in range(4)], 75, RUNNING, EXIT, 1, "started 4 times"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_decision_after_an_attempt(name: str) -> None:
    history, status, job, action, code, words = CASES[name]
    decision = decide(history, status, finished=False, restarts=50 if name != "no restarts left" else 3, job=job)
    assert words in decision.reason
    assert (decision.action, decision.code) == (action, code)


def test_job_that_finds_another_one_in_its_run_ends_with_0() -> None:
    decision = decide([attempt(2)], 2, finished=False, restarts=50, job=RUNNING, busy="process 1 on n1, job 6")
    assert (decision.action, decision.code) == (EXIT, 0)
    assert "job 6 trains in this run" in decision.reason


def test_node_on_which_ranks_failed_twice_is_a_suspect() -> None:
    history = [attempt(1, 50, 40, on="n2"), attempt(76, 60, 40, on="n1 n2"), attempt(75, 60, 60)]
    assert suspects(history) == {"n2": "ranks failed there 2 times"}


FOUR = ("n1", "n2", "n3", "n4")
# name -> needed, bad nodes, suspects, usable nodes of the partition, action, nodes, excluded, words of the reason
PLACES = {
    "all are well": (4, "", "", "", RUN, FOUR, (), ""),
    "spares stay idle": (2, "", "", "", RUN, ("n1", "n2"), (), ""),
    "a spare replaces a bad node": (3, "n2", "", "", RUN, ("n1", "n3", "n4"), ("n2",), "without n2: broken"),
    "and the first node": (3, "", "n1", "", RUN, ("n2", "n3", "n4"), ("n1",), "without n1: failed"),
    "no spare is left": (4, "n2", "", "", REQUEUE, (), ("n2",), "too few nodes are well: n2: broken"),
    "both kinds": (3, "n2", "n4", "", REQUEUE, (), ("n2", "n4"), "n2: broken"),
    "most are bad": (4, "n1 n2 n3", "", "", REQUEUE, (), (), "n1: broken"),
    "the partition has others": (4, "n2", "", "n1 n2 n3 n4 n5", REQUEUE, (), ("n2",), ""),
    "the partition has no others": (4, "n2", "", "n1 n2 n3 n4", REQUEUE, (), (), "n2: broken"),
    "without a substitute, but other failures": (4, "", "n2", "n1 n2 n3 n4", RUN, FOUR, (), "no nodes to replace n2"),
    "a suspect without a substitute": (4, "", "n2", "n1 n2 n3 n4", EXIT, (), (), "failed twice at the same place: n2"),
}


@pytest.mark.parametrize("name", PLACES)
def test_nodes_of_the_next_attempt(name: str) -> None:
    needed, bad, suspected, partition, action, nodes, excluded, words = PLACES[name]
    placement = place(
        FOUR, needed, bad=dict.fromkeys(bad.split(), "broken"), suspects=dict.fromkeys(suspected.split(), "failed"),
        partition=partition.split(), repeated=name.startswith("a suspect"),
    )  # fmt: skip
    assert (placement.action, placement.nodes, set(placement.exclude)) == (action, nodes, set(excluded))
    assert words in placement.reason


def test_shrunk_job_without_bad_nodes_is_requeued() -> None:
    placement = place(FOUR[:2], 3, bad={}, suspects={}, requested=4)
    assert (placement.action, placement.exclude) == (REQUEUE, {})
    assert "2 nodes are left, and the run needs 3" in placement.reason
    assert place(["n1"], 1, bad={"n1": "GPUs"}, suspects={}).exclude == {"n1": "GPUs"}


def test_bad_nodes_are_those_with_problems_or_without_an_answer() -> None:
    cut = "network: cannot reach n1:1 (refused)"
    reports = [
        {"node": "n1", "problems": []},
        {"node": "n2", "problems": ["GPUs: 7"]},
        {"node": "n3", "problems": [cut]},
    ]
    assert bad_nodes(FOUR, reports, "n1") == {"n2": "GPUs: 7", "n3": cut, "n4": "does not answer"}
    # If no other node reaches the first one, it is that one.
    reports = [{"node": "n1", "problems": []}, *({"node": node, "problems": [cut]} for node in FOUR[1:])]
    assert bad_nodes(FOUR, reports, "n1") == {"n1": "network: no other node reaches it"}


MESSAGES = {
    "srun: error: node2: task 1: Killed\nsrun: Terminating\nsrun: error: node1: task 0: Terminated": (
        "node2",
        (1,),
        137,
    ),
    "x\nsrun: error: node2: tasks 2-3,7: Exited with exit code 9": ("node2", (2, 3, 7), 9),
    "srun: error: Node failure on node7": ("node7", (), None),
    "srun: error: Task launch for StepId=5.1 failed on node node2: Communication connection failure": (
        "node2",
        (),
        None,
    ),
}


@pytest.mark.parametrize("text", MESSAGES)
def test_first_failure_in_the_messages_of_srun(text: str) -> None:
    failure = first_failure(text)
    assert failure is not None
    assert (failure.nodes, failure.ranks, failure.status) == ((MESSAGES[text][0],), *MESSAGES[text][1:])


def test_step_without_failures_has_none() -> None:
    assert first_failure("srun: Job step aborted: Waiting up to 32 seconds for job step to finish.") is None


@pytest.mark.parametrize(
    ("status", "outcome", "messages", "expected"),
    [
        (0, "finished", "", 0),
        (0, "", "srun: error: Node failure on node2", 76),  # srun itself returns 0
        (0, "stopped", "srun: error: Node failure on node2", 0),
        (143, "", "srun: error: node2: task 1: Exited with exit code 9", 9),
        (143, "", "srun: error: node2: task 1: Killed", 137),
        (143, "", "srun: error: Node failure on node2", 76),
        (143, "", "", 75),
        (76, "failed", "srun: error: node2: task 1: Exited with exit code 9", 9),
        (76, "failed", "", 1),
        (137, "saved", "", 75),
    ],
)
def test_status_is_that_of_the_rank_that_failed_first(status: int, outcome: str, messages: str, expected: int) -> None:
    assert true_status(status, outcome, first_failure(messages)) == expected


SHOWN = (
    "JobId=7 JobName=two words UserId=me(1) QOS=(null) JobState=RUNNING Requeue=0 RunTime=00:10:00 TimeLimit=01:00:00 "
    "Partition=main ReqNodeList=(null) ExcNodeList=n9 NodeList=n[1-2] BatchHost=n1 NumNodes=2 NumTasks=4 CPUs/Task=3 "
    "ReqB:S:C:T=0:0:*:* Socks/Node=* NtasksPerN:B:S:C=2:0:*:* MinMemoryNode=0 Features=a&b OverSubscribe=NO "
    "WorkDir=/work/it's StdOut=/work/it's/x-7.log Power= TresPerNode=gres:gpu:2,gres:shard:1 MailUser=me MailType=END,FAIL "
)


def test_job_that_submits_itself_again_has_the_same_options() -> None:
    assert resubmit.options(SHOWN, 3, 6, ["n2"]) == [
        "--nodes=3", "--ntasks=6", "--job-name=two words", "--partition=main", "--constraint=a&b", "--time=01:00:00",
        "--cpus-per-task=3", "--chdir=/work/it's", "--mail-user=me", "--mail-type=END,FAIL", "--gpus-per-node=2", "--gres=shard:1",
        "--ntasks-per-node=2", "--exclusive", "--output=/work/it's/x-%j.log", "--exclude=n9,n2",
    ]  # fmt: skip
    array = "JobId=9 ArrayJobId=8 ArrayTaskId=2 JobName=x TimeLimit=UNLIMITED StdOut=/a/x-8_2.log"
    assert resubmit.options(array, 1, 1)[2:] == [
        "--job-name=x",
        "--time=UNLIMITED",
        "--array=2",
        "--output=/a/x-%A_%a.log",
    ]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """Makes jobs of two nodes, of which SLURM is asked nothing."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(attempts, "_RETRY_SECONDS", (0.01, 0.01))
    monkeypatch.chdir(tmp_path)

    def make(number: str = "7", **changes: Any) -> Job:
        values: dict[str, Any] = {"task": number, "restart": 0, "shown": RUNNING, "nodes": 2, "tasks": 4, "spares": 0,
                                  "restarts": 9, "series": number}  # fmt: skip
        return Job(number, **{**values, **changes})

    return make


def beat(run: Path, ended: str, time: float = 4e9, **more: Any) -> None:
    content = {"time": time, "step": 44, "steps": 2, "ended": ended, **more}
    (run / "logs/heartbeat.json").write_text(json.dumps(content))


def test_begin_and_end_record_the_attempts(
    tmp_path: Path, job: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs/x"
    one = job(restarts=1)
    assert requeue.begin(run, None, one, None) == {"action": RUN, "attempt": 1, "tasks": 4}
    (run / "checkpoints/step-00000040").mkdir(parents=True)
    (run / "checkpoints/step-00000050.partial").mkdir()
    beat(run, "failed")
    messages = "srun: error: n2: task 3: Exited with exit code 1\nsrun: error: n1: task 0: Terminated"
    assert requeue.end(run, 143, messages, one) == {"action": RETRY}
    assert requeue.begin(run, None, one, None)["attempt"] == 2
    assert requeue.end(run, 1, "", one) == {"action": EXIT, "code": 1}
    assert requeue.begin(run, None, one, None) == {"action": EXIT, "code": 1}
    first, second = attempts.read(run)
    assert (first.step, first.reached, first.slack, first.saved, first.status) == (0, 44, 2, 40, 1)
    assert (first.failed_on, first.failed_ranks) == (("n2",), (3,))
    assert (second.step, second.tasks, second.stopped) == (40, 4, True)
    assert first.log == str(tmp_path / "logs/7/rank0.log")
    assert "allows 1 restarts" in capsys.readouterr().err
    # The trainer's own outcome overrides srun's exit status, which may be that of a rank that srun killed.
    requeue.begin(run, None, job("8"), None)
    beat(run, "saved")
    assert requeue.end(run, 137, "", job("8"))["action"] == REQUEUE
    # The heartbeat of an earlier attempt is ignored.
    requeue.begin(run, None, job("9"), None)
    beat(run, "saved", time=1.0)
    assert requeue.end(run, 137, "", job("9"))["action"] == RETRY
    assert attempts.read(run)[-1].status == 137
    # Its mark says so too where the clocks of the nodes differ.
    requeue.begin(run, None, job("11"), None)
    beat(run, "saved", attempt="11.0.7")
    assert requeue.end(run, 137, "", job("11"))["action"] == RETRY
    beat(run, "saved", time=1.0, attempt="11.0.1")
    assert requeue.end(run, 137, "", job("11"))["action"] == REQUEUE
    # A signal while Python was starting is not a failure.
    requeue.begin(run, None, job("10"), None)
    assert requeue.end(run, 140, "", job("10"))["action"] == REQUEUE
    assert attempts.read(run)[-1].status == 75
    # Ranks that rank 0 no longer heard name their nodes.
    requeue.begin(run, None, job("11"), None)
    rows = [{"rank": 1, "host": "n2", "silent_s": 61.0}, {"rank": 0, "host": "n1", "silent_s": 1.0}]
    beat(run, "lost", furthest_behind=rows)
    assert requeue.end(run, 76, "srun: error: n1: task 0: Exited with exit code 76", job("11")) == {"action": RETRY}
    assert attempts.read(run)[-1].failed_on == ("n2",)
    (run / "finished.json").write_text("{}")
    assert requeue.begin(run, None, job("12"), None) == {"action": EXIT, "code": 0}


def test_requeued_job_that_still_has_a_suspect_node_is_requeued_without_it(
    tmp_path: Path, job: Callable[..., Job]
) -> None:
    def one(restart: int, nodes: str) -> Job:
        return job(shown=f"{RUNNING} NodeList={nodes} NumNodes=2", restart=restart, partition=("n1", "n2", "n3"))

    (tmp_path / "logs").mkdir()
    for _ in range(2):
        requeue.begin(tmp_path, None, one(0, "n[1-2]"), None)
        requeue.end(tmp_path, 1, "srun: error: n2: task 1: Exited with exit code 1", one(0, "n[1-2]"))
    found = requeue.begin(tmp_path, None, one(1, "n[1-2]"), None)  # SLURM did not take ExcNodeList
    assert (found["action"], found["exclude"]) == (REQUEUE, "n2")
    found = requeue.begin(tmp_path, None, one(2, "n[1,3]"), None)
    assert (found["action"], found["tasks"]) == (RUN, 4)


def test_spares_replace_bad_nodes(tmp_path: Path, job: Callable[..., Job], capsys: pytest.CaptureFixture[str]) -> None:
    def check(*bad: str) -> str:
        return "".join(
            f'\n{PREFIX}{{"kind": "quick", "node": "{node}", "problems": {json.dumps(["GPUs"] if node in bad else [])}}}\n'
            for node in ("n1", "n2", "n3")
        )

    one = job(shown=f"{RUNNING} NodeList=n[1-3] NumNodes=3", nodes=3, tasks=6, spares=1)
    found = requeue.begin(tmp_path, None, one, check())
    assert found["step"] == ["--nodes=2", "--ntasks=4", "--ntasks-per-node=2", "--nodelist=n1,n2"]
    requeue.end(tmp_path, 1, "", one)
    found = requeue.begin(tmp_path, None, one, check("n1"))
    assert (found["first"], found["used"], found["tasks"]) == ("n2", "n2,n3", 4)
    assert attempts.excluded_nodes(tmp_path, "7") == {"n1": "GPUs"}
    (tmp_path / "checkpoints/step-00000010").mkdir(parents=True)
    requeue.end(tmp_path, 1, "", one)
    found = requeue.begin(tmp_path, None, one, check("n1", "n3"))
    assert (found["action"], found["exclude"]) == (REQUEUE, "")  # most of its nodes
    found = requeue.begin(
        tmp_path, None, job(shown=f"{RUNNING} NodeList=n[1-3] NumNodes=3", nodes=4, spares=1), check("n3")
    )
    assert (found["action"], found["exclude"], found["grow"]) == (REQUEUE, "n3", 4)
    assert requeue.begin(tmp_path, None, one, "srun: error: no")["action"] == REQUEUE
    assert "excluded from now on: n3 (GPUs)" in capsys.readouterr().err


def test_chain_of_jobs_counts_together_and_ends_together(tmp_path: Path, job: Callable[..., Job]) -> None:
    chain = [job(str(7 + n), series="7", link=n + 1, links=3) for n in range(3)]
    for one in chain:
        attempts.submitted(tmp_path, one.number, "x.log", "7")
    assert (attempts.waiting(tmp_path) or {})["job"] == "7"
    requeue.begin(tmp_path, None, chain[0], None)
    assert attempts.waiting(tmp_path) is None
    assert requeue.end(tmp_path, 75, "", chain[0]) == {"action": EXIT, "code": 0, "next": "8", "exclude": ""}
    assert (attempts.waiting(tmp_path) or {})["job"] == "8"
    requeue.begin(tmp_path, None, chain[1], None)
    assert requeue.end(tmp_path, 1, "", chain[1]) == {"action": RETRY}
    requeue.begin(tmp_path, None, chain[1], None)
    assert requeue.end(tmp_path, 1, "", chain[1])["code"] == 1
    assert requeue.begin(tmp_path, None, chain[2], None) == {"action": EXIT, "code": 1}
    # A job that is submitted later is no part of it.
    assert requeue.begin(tmp_path, None, job("20"), None)["action"] == RUN
    assert requeue.end(tmp_path, 75, "", job("20", series="19", link=2))["series"] == "19:3"


def test_job_waits_for_another_one_in_its_run_and_ends_with_0(
    tmp_path: Path, job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "6")
    monkeypatch.setenv("BELLWETHER_WAIT", "1")
    monkeypatch.setattr(requeue, "_POLL_SECONDS", 0.05)
    with run_lock.acquire(tmp_path):
        assert requeue.begin(tmp_path, None, job("6"), None)["action"] == RUN  # its own: an earlier attempt ends
        assert requeue.begin(tmp_path, None, job("7"), None) == {"action": EXIT, "code": 0}
        assert "job 6 trains in" in capsys.readouterr().err
        assert requeue.end(tmp_path, 2, "", job("7")) == {"action": EXIT, "code": 0}
    assert requeue.begin(tmp_path, None, job("7"), None)["action"] == RUN


def test_failing_file_system_ends_no_run(
    tmp_path: Path, job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        for name in ("read", "began", "ended", "is_finished", "newest_checkpoint"):
            patch.setattr(attempts, name, fail)
            patch.setattr(requeue, name, fail, raising=False)
        assert requeue.begin(tmp_path, None, job(), None)["action"] == RUN
        assert requeue.end(tmp_path, 75, "", job())["action"] == REQUEUE
        assert requeue.end(tmp_path, 1, "", job())["action"] == RETRY
        assert "writing attempts.jsonl failed ([Errno 5] Input/output error): the run goes on without it" in caplog.text
        # Without a record, the counts of SLURM and of the script are the limit.
        assert requeue.end(tmp_path, 1, "", job(tries=10)) == {"action": EXIT, "code": 1}
        assert requeue.begin(tmp_path, None, job(restart=10), None) == {"action": EXIT, "code": 1}
    # An access that succeeds later has no effect but time.
    tries = []

    def fail_once(run: Path, attempt: Attempt) -> None:
        tries.append(run)
        if len(tries) == 1:
            fail()

    monkeypatch.setattr(attempts, "began", fail_once)
    assert requeue.begin(tmp_path, None, job(), None)["action"] == RUN
    assert len(tries) == 2


@pytest.mark.parametrize(
    ("tres", "tasks", "per_node", "words"),
    [
        ("gres:gpu:8", 1, 8, "sbatch --ntasks: 1: 1 task a node would use as many of its 8 GPUs"),
        ("gres/gpu:a100:8,gres/shard:2", 8, 4, "sbatch --ntasks-per-node: 8: 4 tasks a node"),
        ("gres:gpu:4", 8, 4, ""),
        ("gres:gpu:1", 4, 2, ""),
        ("(null)", 4, 2, ""),
    ],
)
def test_tasks_that_leave_gpus_idle_are_refused(
    job: Callable[..., Job], tres: str, tasks: int, per_node: int, words: str
) -> None:
    config = load("bert-tiny", ["engine.device=auto"])
    nodes = 1 if tasks == 1 else 2
    one = job(shown=f"JobId=7 NtasksPerN:B:S:C={per_node}:0:*:* TresPerNode={tres} ", nodes=nodes, tasks=tasks)
    if not words:
        requeue._check_gpus(config, one)
        return
    with pytest.raises(ConfigError, match=words):
        requeue._check_gpus(config, one)
    requeue._check_gpus(load("bert-tiny", ["engine.device=cpu"]), one)


def test_output_is_read_by_a_shell(tmp_path: Path) -> None:
    text = requeue._shell({"action": "run", "step": ["--nodelist=a,b", "it's"], "exclude": ""})
    done = subprocess.run(
        ["bash", "-c", f'{text}; printf "%s|" "$action" "${{step[@]}}" "$exclude"'], capture_output=True, text=True
    )
    assert done.stdout == "run|--nodelist=a,b|it's||"


def test_attempts_of_two_jobs_on_one_run_are_kept_apart(tmp_path: Path, job: Callable[..., Job]) -> None:
    first = job(restart=1, shown=f"{RUNNING} Restarts=1")
    requeue.begin(tmp_path, None, first, None)
    requeue.begin(tmp_path, None, job("8"), None)
    assert requeue.end(tmp_path, 2, "", job("8"))["code"] == 2
    assert requeue.end(tmp_path, 75, "", first)["action"] == REQUEUE
    assert [(a.job, a.status) for a in attempts.read(tmp_path)] == [("7", 75), ("8", 2)]


def test_attempt_whose_first_node_was_lost_counts_as_a_restart(
    tmp_path: Path, job: Callable[..., Job], capsys: pytest.CaptureFixture[str]
) -> None:
    assert requeue.begin(tmp_path, None, job(restarts=1), None)["action"] == RUN
    assert requeue.begin(tmp_path, None, job(restarts=1), None)["action"] == RUN
    assert "the previous attempt recorded no end" in capsys.readouterr().err
    assert requeue.begin(tmp_path, None, job(restarts=1), None)["action"] == EXIT


def test_truncated_record_is_read_as_far_as_possible(tmp_path: Path, job: Callable[..., Job]) -> None:
    requeue.begin(tmp_path, None, job(), None)
    with open(tmp_path / attempts.FILE, "a") as file:
        file.write('{"event": "end", "sta\n\n{"event": "begin"}\n[]\n')
    assert [a.job for a in attempts.read(tmp_path)] == ["7"]


def test_attempts_of_a_newer_version_are_read_without_its_new_fields(tmp_path: Path, job: Callable[..., Job]) -> None:
    requeue.begin(tmp_path, None, job(), None)
    requeue.end(tmp_path, 75, "", job())
    before = attempts.read(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / attempts.FILE).read_text().splitlines()]
    (tmp_path / attempts.FILE).write_text("".join(json.dumps({**line, "colour": "blue"}) + "\n" for line in lines))
    assert attempts.read(tmp_path) == before != []


def test_submission_is_waiting_until_its_attempt_begins(tmp_path: Path, job: Callable[..., Job]) -> None:
    assert attempts.waiting(tmp_path) is None
    attempts.submitted(tmp_path, "7", "x.log")
    waiting = attempts.waiting(tmp_path)
    assert waiting is not None
    assert (waiting["job"], waiting["log"]) == ("7", "x.log")
    assert attempts.read(tmp_path) == []
    requeue.begin(tmp_path, None, job(), None)
    assert attempts.waiting(tmp_path) is None
    assert len(attempts.read(tmp_path)) == 1


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("BELLWETHER_RESTARTS", "many", "BELLWETHER_RESTARTS: 'many'"),
        ("BELLWETHER_SPARES", "1", "BELLWETHER_SPARES: 1: the job has 1 nodes"),
    ],
)
def test_invalid_number_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    assert requeue.main(["begin", "configs/bert-tiny.yaml"]) == 0
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == "action=exit code=2\n"


@pytest.mark.process
def test_modules_that_a_batch_script_runs_import_nothing_heavy() -> None:
    program = (
        "import sys, bellwether.launcher.requeue, bellwether.launcher.status, bellwether.trainer.rendezvous\n"
        "bellwether.launcher.requeue.load('configs/bert-tiny.yaml')\n"
        "heavy = {'torch', 'numpy', 'deepspeed', 'transformers', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.process
def test_errors_in_a_batch_script_have_the_prefix() -> None:
    command = [sys.executable, "-m", "bellwether.launcher.requeue", "begin", "nowhere.yaml"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stdout == "action=exit code=2\n"
    assert done.stderr.startswith("bellwether: CONFIG: 'nowhere.yaml'")
