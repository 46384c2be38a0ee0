"""A SLURM cluster on this machine, for tests: real daemons, with every node in its own Linux namespaces.

A node has its own network (an address on a bridge), host name, processes, /proc and /dev/shm, so it can be powered off or
disconnected separately. The file system is shared, as on a cluster. Needs root, Linux namespaces and Debian's slurm-wlm.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.cluster import slurm_conf
from tests.cluster.slot import Slot

_TOOLS = ("slurmctld", "slurmd", "sbatch", "srun", "munged", "ip", "bridge", "unshare", "nsenter", "setpriv", "mount")
# Child processes die with the test run, also when it is killed and cannot clean up.
_TIED = ("setpriv", "--pdeathsig", "KILL")
# A node's init process. It outlives slurmd, and reaps orphaned processes.
_INIT = """
hostname "$1" && mount --bind "$2/hosts" /etc/hosts && mount -t tmpfs -o mode=1777 tmpfs /dev/shm || exit 1
slurmd -D -N "$1" &
while true; do wait; sleep 1; done
"""


def missing() -> str | None:
    """The reason why this machine cannot run a cluster; None if it can."""
    if os.geteuid() != 0:
        return "needs root"
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (scripts/install-system.sh)"
    probe = "unshare --net --uts --mount --pid --fork --mount-proc ip link add probe type bridge"
    tried = subprocess.run(probe.split(), capture_output=True, text=True)
    return None if tried.returncode == 0 else f"no namespaces: {tried.stderr.strip()}"


class Cluster:
    """A running cluster: ``Cluster(directory, 2)`` has nodes node1 and node2 when the constructor returns. `close` stops it.

    Args:
        directory: for configuration, state and logs; a short path, as it holds sockets.
        size: number of nodes.
    """

    def __init__(self, directory: Path, size: int) -> None:
        self.directory, self.size = directory, size
        self.names = [f"node{n}" for n in range(1, size + 1)]
        self._slot = Slot()
        self._tag, self._net = self._slot.name, self._slot.network
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._controller: subprocess.Popen[bytes] | None = None
        self._munged: subprocess.Popen[bytes] | None = None
        self.environment = {**os.environ, "SLURM_CONF": str(directory / "slurm.conf")}
        for name in [n for n in self.environment if n.startswith(("SBATCH_", "SLURM_", "BELLWETHER_", "MASTER_"))]:
            if name != "SLURM_CONF":
                del self.environment[name]
        try:
            self._make_network()
            self._configure()
            self._start_munge()
            self.start_controller()
            for name in self.names:
                self.start_node(name)
            self.wait(lambda: self._idle() == size, 300, "the nodes to be idle")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the cluster and everything that runs on it."""
        for node in list(self._nodes):
            self.kill_node(node)
        for daemon in (self._controller, self._munged):
            if daemon is not None:
                _end(daemon)
        self._slot.remove_network()
        self._slot.close()

    # Use

    def run(self, *command: str, check: bool = True, timeout: float = 240, **environment: str) -> str:
        """Run a SLURM command, as on the login node; returns its standard output."""
        done = subprocess.run(
            command, env={**self.environment, **environment}, capture_output=True, text=True, timeout=timeout
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def submit(self, directory: Path, *arguments: str, **environment: str) -> int:
        """Run sbatch in a directory; returns the job's id."""
        out = self.run("sbatch", "--parsable", f"--chdir={directory}", *arguments, **environment)
        return int(out.split(";")[0])

    def show(self, job: int | str) -> dict[str, str]:
        """The fields of ``scontrol show job``."""
        line = self.run("scontrol", "show", "job", "-o", str(job))
        return dict(part.partition("=")[::2] for part in line.split(" "))

    def state(self, job: int | str) -> str:
        return self.show(job)["JobState"]

    def wait_for(self, job: int | str, state: str, seconds: float = 600) -> None:
        """Wait until the job is in a state; fail if it ends in another one."""

        def arrived() -> bool:
            now = self.state(job)
            ended = now not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING", "SUSPENDED", state)
            assert not ended, f"job {job} is {now}, not {state}"
            return now == state

        self.wait(arrived, seconds, f"job {job} to be {state}")

    def wait(self, holds: Callable[[], bool], seconds: float, goal: str) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {goal}\n{self.logs()}"
            time.sleep(0.2)

    def logs(self) -> str:
        """The queue, and the last lines of the daemons' logs, for error messages."""
        logs = [f"--- {log.name}\n{''.join(_tail(log))}" for log in sorted(self.directory.glob("*.log"))]
        return "\n".join([self.run("squeue", check=False), self.run("sinfo", "-N", "-l", check=False), *logs])

    @contextlib.contextmanager
    def on(self, node: str, *command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """Run a command on a node until the end of the block, as a logged-in user would."""
        process = subprocess.Popen(
            [*_TIED, "nsenter", "-t", str(self._init_pid(node)), "-n", "-u", "-m", "-p", "--", *command],
            env={**self.environment, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # nsenter and its child processes
            process.communicate()

    def address(self, node: str) -> str:
        return f"{self._net}.{10 + self.names.index(node) + 1}"

    def processes(self, node: str, words: Sequence[str]) -> list[int]:
        """The processes of a node whose command line contains all words; pids of this machine."""
        space = os.readlink(f"/proc/{self._init_pid(node)}/ns/pid")
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
                if os.readlink(folder / "ns/pid") == space and all(word in line for word in words):
                    found.append(int(folder.name))
        return found

    # Failures

    def kill_node(self, node: str) -> None:
        """Power off the node: cut its link, so that no connection is closed properly, and kill all its processes."""
        process = self._nodes.pop(node, None)
        if process is not None:
            self.silence(node)
            _end(process, signal.SIGKILL)

    def start_node(self, node: str) -> None:
        """Power on."""
        (self.directory / "spool" / node).mkdir(parents=True, exist_ok=True)
        with open(self.directory / f"{node}.console", "ab") as console:
            self._nodes[node] = subprocess.Popen(
                [*_TIED, "nsenter", f"--net=/run/netns/{self._tag}-{node}", "unshare", "--uts", "--mount", "--pid", "--fork",
                 "--kill-child", "--mount-proc", "bash", "-c", _INIT, "node", node, str(self.directory)],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
            )  # fmt: skip
        self.reconnect(node)

    def bring_back(self, node: str) -> None:
        self.start_node(node)
        self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)

    def silence(self, node: str) -> None:
        """Drop all of a node's packets at the bridge; its link stays up."""
        self._bridge(node, "0")

    def reconnect(self, node: str) -> None:
        self._bridge(node, "3")

    def start_controller(self) -> None:
        self._controller = subprocess.Popen(
            [*_TIED, "slurmctld", "-D"], env=self.environment, stdin=subprocess.DEVNULL, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def stop_controller(self) -> None:
        assert self._controller is not None
        _end(self._controller)

    # Setup

    def _make_network(self) -> None:
        _run("ip", "link", "add", self._tag, "type", "bridge")
        _run("ip", "addr", "add", f"{self._net}.1/24", "dev", self._tag)
        _run("ip", "link", "set", self._tag, "up")
        for index, name in enumerate(self.names, 1):
            space, end = f"{self._tag}-{name}", f"{self._tag}v{index}"
            _run("ip", "netns", "add", space)
            _run("ip", "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", space)
            _run("ip", "link", "set", end, "master", self._tag, "up")
            _run("ip", "-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            _run("ip", "-n", space, "link", "set", "eth0", "up")
            _run("ip", "-n", space, "link", "set", "lo", "up")

    def _configure(self) -> None:
        self.directory.chmod(0o755)
        (self.directory / "state").mkdir(exist_ok=True)
        nodes = {name: self.address(name) for name in self.names}
        slurm_conf.write(self.directory, f"{self._net}.1", self._slot.port, nodes)

    def _start_munge(self) -> None:
        key = self.directory / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        d = self.directory
        self._munged = subprocess.Popen(
            [*_TIED, "munged", "--foreground", f"--key-file={key}", f"--socket={d}/munge.socket", f"--pid-file={d}/munged.pid",
             f"--log-file={d}/munged.log", f"--seed-file={d}/munged.seed"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.wait((d / "munge.socket").exists, 120, "munged")

    def _idle(self) -> int:
        return len(self.run("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N", check=False).split())

    def _init_pid(self, node: str) -> int:
        """The pid, on this machine, of a node's init process."""
        outer = self._nodes[node].pid
        return int(Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0])

    def _bridge(self, node: str, state: str) -> None:
        _run("bridge", "link", "set", "dev", f"{self._tag}v{self.names.index(node) + 1}", "state", state)


@contextlib.contextmanager
def cluster(size: int) -> Iterator[Cluster]:
    """Run a cluster for the duration of a with statement."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="bw", dir="/tmp", ignore_cleanup_errors=True) as folder:
        machine = Cluster(Path(folder), size)
        try:
            yield machine
        finally:
            machine.close()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def _quietly(*command: str) -> None:
    subprocess.run(command, capture_output=True)


def _end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
    process.send_signal(number)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(log: Path) -> list[str]:
    with open(log, errors="replace") as file:
        return file.readlines()[-15:]
