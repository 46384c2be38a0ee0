"""Facts about one node's system: host name, network interface, disks, ports, cores. Imports nothing heavy."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

from bellwether.launcher.doctor.protocol import Facts, brief
from bellwether.launcher.doctor.timeout import PROBE_SECONDS, run_with_timeout
from bellwether.trainer import rendezvous

CACHE = "~/.cache/bellwether"  # default of data.cache; the compiled CPU kernel is stored there too
PORTS = 20  # number of ports to test, of those that a job would try first


def host() -> Facts:
    """This node's name and addresses, the address of its interface (BELLWETHER_INTERFACE), and its SLURM step's nodes."""
    name = socket.gethostname()
    facts: Facts = {"host": name, "addresses": [], "nodelist": os.environ.get("SLURM_STEP_NODELIST")}
    try:
        facts["addresses"] = run_with_timeout(PROBE_SECONDS, lambda: addresses(name))[:4]
    except (OSError, TimeoutError) as error:
        facts["unresolved"] = brief(error)
    if interface := os.environ.get("BELLWETHER_INTERFACE"):
        facts["interface"] = {"name": interface}
        try:
            facts["interface"]["address"] = rendezvous.address(interface)
        except (ImportError, ValueError) as error:
            facts["interface"]["error"] = brief(error)
    return facts


def addresses(name: str) -> list[str]:
    """The addresses of a host name.

    Raises:
        OSError: if it does not resolve.
    """
    return sorted({str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})


def cores() -> Facts:
    """Cores that this process may use, cores of the machine, and OMP_NUM_THREADS."""
    visible = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"visible": visible, "all": os.cpu_count(), "omp": os.environ.get("OMP_NUM_THREADS")}


def disks(shared: str) -> Facts:
    """Free bytes and inodes where a run writes, and whether those directories are writable."""
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError:  # no temporary directory is writable
        temporary = os.environ.get("TMPDIR", "/tmp")
    paths = {"runs": shared, "cache": CACHE, "shm": "/dev/shm", "temp": temporary}
    return {role: _disk(os.path.abspath(os.path.expanduser(path))) for role, path in paths.items()}


def _disk(path: str) -> Facts:
    facts: Facts = {"path": path}

    def probe() -> None:
        facts["path"] = folder = existing(path)
        usage = os.statvfs(folder)
        facts["free"] = usage.f_bavail * usage.f_frsize
        facts["inodes"] = usage.f_favail if usage.f_files else None  # some file systems do not count them
        with tempfile.TemporaryFile(dir=folder, prefix=".bellwether-doctor-") as file:
            file.write(b"x")

    try:
        run_with_timeout(PROBE_SECONDS, probe)
    except (OSError, TimeoutError) as error:
        facts["error"] = brief(getattr(error, "strerror", None) or error)
    return facts


def existing(path: str) -> str:
    """The directory, or its nearest ancestor that exists."""
    folder = os.path.abspath(path)
    while not os.path.isdir(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return folder


def ports() -> Facts:
    """How many of the ports that a job would try first are free, and where Linux's ephemeral port range begins."""
    job = os.environ.get("SLURM_JOB_ID", "")
    candidates = rendezvous.ports(int(job) if job.isdigit() else os.getpid())
    tried = [next(candidates) for _ in range(PORTS)]
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        first = None
    return {"tried": PORTS, "free": sum(map(rendezvous.is_free, tried)), "ephemeral": first}
