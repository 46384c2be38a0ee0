"""Disturbs a small run with random faults, and checks that it ends as if nothing had happened.

    .venv/bin/python scripts/chaos.py                        # 20 faults, about 4 minutes
    .venv/bin/python scripts/chaos.py --faults 100 --seed 2026  # most of docs/results/chaos.md
    .venv/bin/python scripts/chaos.py --only disk --faults 5

A run of two ranks is trained undisturbed once. Then faults hit runs of the same config at random moments: kill -9 of the launcher,
a rank, a data worker or a node, a cut link, a full disk, a truncated file, a moved clock, a flooded store. After each the same
command resumes the run. In the end weights, optimizer state, exported model and metrics must be those of the undisturbed run, bit
by bit, with every step logged once. Otherwise the run is kept for inspection and the exit status is 1.

Mounts, networks and nodes are namespaces that vanish with the script; it needs no root where users may create namespaces. A kind
of fault that the machine has no means for is named as skipped. The seed decides kinds and moments; how far the run is at a moment
depends on the machine.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.chaos_faults import FAULTS, Machine, build_clock, mode, skipped
from scripts.chaos_nodes import Nodes, enter
from scripts.chaos_subject import Launch, Subject, differences

_DISK = "64m"
_END_SECONDS = 120  # for the processes of a disturbed launch to end
_LAUNCH_SECONDS = 300  # without a new step
_GOES_ON = 3  # steps after which a run has survived a fault


class Failed(Exception):
    """The run did not survive a fault."""


@dataclass
class Record:
    """One fault and its outcome."""

    kind: str
    moment: str
    text: str = ""
    outcome: str = ""
    step: int = 0  # reached when the fault came
    at: float = 0.0
    lost: float | None = None  # seconds until the run was as far again


@dataclass
class Chaos:
    """The faults that are left, and those that were made."""

    folder: Path
    machine: Machine
    rng: random.Random
    left: list[str]
    records: list[Record]
    runs: int = 0

    def next_moment(self) -> tuple[str, float]:
        """When a fault comes: seconds after the launch, steps after its first, or while a checkpoint is written."""
        name = self.rng.choices(["start", "step", "checkpoint"], [0.15, 0.6, 0.25])[0]
        return name, self.rng.uniform(0.2, 8.0) if name == "start" else float(self.rng.randrange(0, 12))

    def all(self, reference: Subject) -> None:
        """Runs one after another until no faults are left; each is compared with the undisturbed one."""
        while self.left:
            self.runs += 1
            subject = Subject(self.folder, self.machine.disk, f"disturbed-{self.runs}")
            try:
                self._one_run(subject)
                self._caught_up(subject)
                found = differences(subject, reference)
            except Failed as error:
                found = [str(error)]
            if found:
                raise Failed("\n".join([f"{subject.name} does not end as the undisturbed run:", *found]))
            print(f"{subject.name} ends as the undisturbed run, bit by bit", flush=True)
            shutil.rmtree(subject.run)

    def _one_run(self, subject: Subject) -> None:
        while not subject.finished:
            kind = self.left[0] if self.left else ""
            how = mode(kind, self.machine) if kind else "local"
            launch = self._launch(subject, how)
            try:
                self._disturb(subject, launch)
            finally:
                launch.kill()
                launch.wait(30)
                if self.machine.nodes is not None:
                    self.machine.nodes.close()
                    self.machine.nodes = None

    def _launch(self, subject: Subject, how: str) -> Launch:
        if how == "nodes":
            self.machine.nodes = Nodes(self.folder)
        return subject.launch(how, self.machine.clock)

    def _disturb(self, subject: Subject, launch: Launch) -> None:
        """Disturb one launch until it ends."""
        while True:
            kind = next((kind for kind in self.left if mode(kind, self.machine) == launch.mode), None)
            if kind is None and self.left:
                # The faults that are left need another kind of launch.
                launch.process.terminate()
                self._end(subject, launch)
                return
            name, value = self.next_moment()
            if not self._wait_for(subject, launch, name if kind else "end", value):
                status = launch.process.wait()
                launch.wait(_END_SECONDS)
                if not subject.finished:
                    raise Failed(f"{subject.name} ended by itself with status {status}: see {subject.output}")
                return
            assert kind is not None
            self.left.remove(kind)
            record = Record(kind, name, step=subject.step, at=time.monotonic())
            self.records.append(record)
            disturbance = FAULTS[kind][0](launch, subject, self.machine, self.rng)
            record.text = disturbance.text
            if disturbance.goes_on and self._survives(subject, launch, record):
                record.outcome = "went on"
                self._show(record)
                if launch.running:
                    continue
                return
            try:
                self._end(subject, launch)
            finally:
                disturbance.after()
            record.outcome = "finished" if subject.finished else "restarted"
            self._show(record)
            return

    def _wait_for(self, subject: Subject, launch: Launch, moment: str, value: float) -> bool:
        """Wait for the moment of a fault; returns whether the launch is still running."""
        begin, first = time.monotonic(), None
        progress, step = begin, subject.step
        while launch.running:
            now = time.monotonic()
            launch.processes()
            if subject.step != step:
                step, progress = subject.step, now
                first = step if first is None else first
                self._caught_up(subject)
            if now - progress > _LAUNCH_SECONDS:
                raise Failed(f"no step for {_LAUNCH_SECONDS} s after step {step}: see {subject.output}")
            if moment == "start" and now - begin >= value:
                return True
            due = first is not None and step >= first + value
            if (moment == "step" and due) or (moment == "checkpoint" and due and subject.saving):
                return True
            time.sleep(0.002 if moment == "checkpoint" and due else 0.05)
        self._caught_up(subject)
        return False

    def _survives(self, subject: Subject, launch: Launch, record: Record) -> bool:
        deadline = time.monotonic() + _END_SECONDS
        while time.monotonic() < deadline and launch.running:
            if subject.step >= record.step + _GOES_ON:
                self._caught_up(subject)
                return True
            time.sleep(0.05)
        return subject.finished

    def _end(self, subject: Subject, launch: Launch) -> None:
        if not launch.wait(_END_SECONDS):
            names = ", ".join(f"{process.pid} {process.name()}" for process in launch.processes())
            raise Failed(f"processes still run after {_END_SECONDS} s: {names}; see {subject.output}")

    def _caught_up(self, subject: Subject) -> None:
        now, step = time.monotonic(), subject.step
        for record in self.records:
            if record.lost is None and (step > record.step or subject.finished):
                record.lost = now - record.at

    def _show(self, record: Record) -> None:
        number = f"{len(self.records)}/{len(self.records) + len(self.left)}"
        where = f"at {record.moment}, step {record.step}"
        print(f"{number:>8}  {record.kind:<10} {where:<26} {record.text}: {record.outcome}", flush=True)


def table(records: list[Record], skips: dict[str, str], seconds: float) -> str:
    """The faults by kind, in Markdown."""
    rows = ["| fault | count | outcome | seconds lost, median | most |", "|---|---|---|---|---|"]
    for kind in FAULTS:
        of_kind = [record for record in records if record.kind == kind]
        if kind in skips:
            rows.append(f"| {kind} | 0 | skipped: {skips[kind]} | | |")
        elif of_kind:
            outcomes = ", ".join(f"{count} {name}" for name, count in Counter(r.outcome for r in of_kind).most_common())
            lost = sorted(record.lost for record in of_kind if record.lost is not None)
            times = f"{lost[len(lost) // 2]:.1f} | {lost[-1]:.1f}" if lost else " | "
            rows.append(f"| {kind} | {len(of_kind)} | {outcomes} | {times} |")
    rows.append(f"| **all** | {len(records)} | | {seconds / 60:.0f} min | |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--faults", type=int, default=20, help="number of faults (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of kinds and moments (default: 0)")
    parser.add_argument("--only", choices=list(FAULTS), help="one kind of fault")
    parser.add_argument("--keep", type=Path, default=Path("chaos-failed"), help="where a run that fails is kept")
    arguments = parser.parse_args()
    isolated = enter()

    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    disk = folder / "disk"
    disk.mkdir()
    if isolated:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "none", str(disk)], check=True)
    machine = Machine(disk, isolated, isolated, build_clock(folder))
    skips = skipped(machine)
    rng = random.Random(arguments.seed)
    kinds = [arguments.only] if arguments.only else list(FAULTS)
    drawn = [kinds[index % len(kinds)] for index in range(arguments.faults)]
    rng.shuffle(drawn)
    chaos = Chaos(folder, machine, rng, [kind for kind in drawn if kind not in skips], [])
    for kind in sorted(set(drawn) & set(skips)):
        print(f"skipped {drawn.count(kind)} x {kind}: {skips[kind]}")
    started = time.monotonic()
    failure = ""
    reference = Subject(folder, disk, "undisturbed")
    try:
        launch = reference.launch("local")
        if launch.process.wait() != 0 or not reference.finished:
            raise Failed(f"the undisturbed run failed: see {reference.output}")
        print(f"undisturbed run: {reference.step} steps in {time.monotonic() - started:.0f} s", flush=True)
        chaos.all(reference)
    except Failed as error:
        failure = str(error)
    except KeyboardInterrupt:
        failure = f"stopped with {len(chaos.left)} faults left"
    print(table(chaos.records, skips, time.monotonic() - started))
    if failure:
        shutil.copytree(folder, arguments.keep, dirs_exist_ok=True)
        print(f"{failure}\nkept in {arguments.keep}", file=sys.stderr)
    else:
        print(f"{chaos.runs} runs end as the undisturbed one, bit by bit, with every step logged once")
    if isolated:
        subprocess.run(["umount", str(disk)], check=False)
    shutil.rmtree(folder, ignore_errors=True)
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
