"""``python -m bellwether.launcher.doctor.quick CONFIG [key=value ...]``: whether one node of a job can train, within seconds.

The batch script runs it on every node after a failure. It prints one line of JSON with the node's problems: its GPUs, the file system
of the runs, and its connection to the first node over the network of the rendezvous. Imports nothing heavy.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence

from bellwether.launcher.doctor import software_probe, system_probe
from bellwether.launcher.doctor.protocol import PREFIX, Facts, Reporter, brief, parse
from bellwether.launcher.doctor.timeout import PROBE_SECONDS, run_with_timeout
from bellwether.trainer.config import load

UNREACHABLE = "network: cannot reach"
_SERVE_SECONDS = 120.0  # the longest that a check takes


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bellwether.launcher.doctor.quick", description="Checks one node.")
    parser.add_argument("--reach", metavar="HOST:PORT", default="", help="where the first node listens (--serve)")
    parser.add_argument("--serve", metavar="HOST:PORT", default="", help="listen there for the other nodes")
    parser.add_argument("config", metavar="CONFIG", nargs="?", default="")
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    arguments = parser.parse_args(argv)
    if arguments.serve:
        serve(*_address(arguments.serve))
        return 0
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    Reporter(0).send(
        {"kind": "quick", "node": name, "problems": problems(arguments.config, arguments.overrides, arguments.reach)}
    )
    return 0


def problems(config: str, overrides: Sequence[str], reach: str) -> list[str]:
    """What is wrong with this node, for a run with a config."""
    found = [*gpus(software_probe.nvidia_driver(), _given_gpus())]
    try:
        runs = run_with_timeout(4 * PROBE_SECONDS, lambda: load(config, overrides)).runs
        disk = system_probe.disks(runs)["runs"]
        if "error" in disk:
            found.append(f"file system: {disk['path']}: {disk['error']}")
    except (OSError, ValueError, TimeoutError) as error:  # the first node could read the config
        found.append(f"file system: {config}: {brief(error)}")
    facts = system_probe.host()
    if "error" in facts.get("interface", {}):
        found.append(f"network: {facts['interface']['error']}")
    if reach and (problem := _unreachable(*_address(reach))):
        found.append(f"{UNREACHABLE} {reach} ({problem})")
    return found


def gpus(driver: Facts, given: int) -> list[str]:
    """What is wrong with the GPUs, from what ``nvidia-smi`` reports, and how many SLURM has given to the job here.

    >>> gpus({"count": 7}, 8)
    ['GPUs: nvidia-smi shows 7, and SLURM gives the job 8']
    >>> gpus({}, 8)  # no nvidia-smi: GPUs of another kind
    []
    """
    if given and "error" in driver:
        return [f"GPUs: nvidia-smi: {driver['error']}"]
    if driver.get("count", given) < given:
        return [f"GPUs: nvidia-smi shows {driver['count']}, and SLURM gives the job {given}"]
    return []


def _given_gpus() -> int:
    """The number of GPUs that SLURM gives the job here, of which nvidia-smi must show as many. Of one there may be many MIG instances."""
    e = os.environ
    if any(name.strip().startswith("MIG") for name in e.get("CUDA_VISIBLE_DEVICES", "").split(",")):
        return 1
    return len([item for item in (e.get("SLURM_STEP_GPUS") or "").split(",") if item])


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def _unreachable(host: str, port: int) -> str | None:
    """The error if a connection fails for some seconds."""
    deadline = time.monotonic() + 2 * PROBE_SECONDS
    while True:
        try:
            socket.create_connection((host, port), timeout=PROBE_SECONDS).close()
            return None
        except OSError as error:
            if time.monotonic() > deadline:
                return brief(error.strerror or error)
        time.sleep(0.2)


def serve(host: str, port: int) -> None:
    """Accept and close connections until this process is ended, or for two minutes."""
    timer = threading.Timer(_SERVE_SECONDS, os._exit, (0,))
    timer.daemon = True
    timer.start()
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    with socket.create_server((host, port), family=family, backlog=1024) as server:
        while True:
            with contextlib.suppress(OSError):
                server.accept()[0].close()


def reports(text: str) -> list[Facts]:
    """The reports in the output of the check on all nodes."""
    return [facts for facts in parse(text) if facts.get("kind") == "quick"] if PREFIX in text else []


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a thread may hang in a dead file system
