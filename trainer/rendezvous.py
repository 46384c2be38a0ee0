"""Rendezvous of the processes of a run: the first node, its address on the site's network, a free port, the interface to listen on.

A batch script determines it once, on the first node, before it starts the tasks::

    eval "$(python -m bellwether.trainer.rendezvous)"        # MASTER_ADDR, MASTER_PORT, BELLWETHER_SECRET

A task without these variables (``srun python -m bellwether.trainer ...`` by hand) computes address and port, with the same result in
every task, and has no secret. Light imports only.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import logging
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence

from bellwether.trainer import log

# Below Linux's ephemeral ports (32768 and up), so that no outgoing connection occupies one by chance.
_FIRST, _COUNT = 10_000, 20_000
_STRIDE = 7919  # prime to _COUNT: visits all ports, and jobs with neighbouring ids do not try the same ones


def hosts(nodelist: str) -> list[str]:
    """Host names from SLURM's compressed form, by ``scontrol``, or by `expand` where there is none, as in a container.

    Raises:
        ValueError: if the text is no such list.
    """
    try:
        expanded = subprocess.run(
            ["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True, timeout=30, check=True
        )
        return expanded.stdout.split() or expand(nodelist)
    except (OSError, subprocess.SubprocessError):
        return expand(nodelist)


def expand(nodelist: str) -> list[str]:
    """Host names from SLURM's compressed form, as ``scontrol show hostnames`` expands it.

    >>> expand("rack[1-2]n[3-4],x7")
    ['rack1n3', 'rack1n4', 'rack2n3', 'rack2n4', 'x7']
    >>> expand("gpu[008-010,42]-ib")
    ['gpu008-ib', 'gpu009-ib', 'gpu010-ib', 'gpu42-ib']

    Raises:
        ValueError: if the text is no such list.
    """
    parts = re.findall(r"(?:[^\[\],\s]|\[[^\[\]]*\])+", nodelist)
    if not parts or ",".join(parts) != nodelist.strip():
        raise ValueError(f"{nodelist!r}: no list of hosts such as node[1-4],login")
    return [host for part in parts for host in _expand(part)]


def _expand(part: str) -> Iterator[str]:
    head, bracket, rest = part.partition("[")
    if not bracket:
        yield head
        return
    ranges, _, tail = rest.partition("]")
    for item in ranges.split(","):
        first, _, last = item.partition("-")
        last = last or first
        if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
            raise ValueError(f"{part!r}: {item!r} is no range of numbers such as 1-4")
        for number in range(int(first), int(last) + 1):
            for end in _expand(tail):
                yield f"{head}{number:0{len(first)}d}{end}"


def ports(job: int, restart: int = 0) -> Iterator[int]:
    """The ports that a job tries, in order; each job and each restart starts with a different one.

    >>> next(ports(123)) == next(ports(123)) != next(ports(123, restart=1))
    True
    """
    start = job + 4001 * restart
    for index in range(_COUNT):
        yield _FIRST + (start + _STRIDE * index) % _COUNT


def new_secret() -> str:
    """A random secret for one run."""
    return secrets.token_hex(32)


def is_free(port: int, host: str = "") -> bool:
    """Whether a server can listen on a port of this machine now, on one address or on all."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((host, port))
        except OSError:
            return False
    return True


def address(interface: str | None) -> str:
    """This machine's host name or, with an interface such as ``ib0``, its IPv4 address on that interface.

    Raises:
        ValueError: if there is no such interface, or it has no address, naming the interfaces with one.
    """
    if not interface:
        return socket.gethostname()
    by_interface = {name: [ip for ip in own if ":" not in ip] for name, own in _interfaces().items()}
    if by_interface.get(interface):
        return by_interface[interface][0]
    usable = ", ".join(sorted(name for name, own in by_interface.items() if own)) or "none"
    raise ValueError(
        f"interface {interface!r}: no IPv4 address on {socket.gethostname()}; interfaces with one: {usable}"
    )


def _interfaces() -> dict[str, list[str]]:
    """The IP addresses of each interface of this machine."""
    import psutil

    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [a.address.partition("%")[0] for a in addresses if a.family in families]
        for name, addresses in psutil.net_if_addrs().items()
    }


def own_address(host: str) -> str:
    """The address of this machine by which others reach it under the name ``host``: that on which its store listens.

    Raises:
        ValueError: if the name is that of another machine, or means the loopback interface here.
    """
    found = [str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    usable = {ip: name for name, own in _interfaces().items() for ip in own if not ipaddress.ip_address(ip).is_loopback}
    for ip in found:
        if ip in usable:
            return ip
    names = ", ".join(sorted(set(usable.values()))) or "none"
    raise ValueError(
        f"{host} is {', '.join(dict.fromkeys(found))} on {socket.gethostname()}, where other machines cannot reach it; "
        f"set BELLWETHER_INTERFACE to one of its interfaces: {names}"
    )


def loopback() -> str:
    """The name of the loopback interface."""
    return next((name for name, own in _interfaces().items() if "127.0.0.1" in own), "lo")


def interface_to(host: str) -> str | None:
    """The interface through which this machine reaches a host, or None where that is not known."""
    for family, _, _, _, target in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # chooses a route; sends nothing
            own = probe.getsockname()[0]
            return next((name for name, found in _interfaces().items() if own in found), None)
    return None


def of_step() -> tuple[str, int]:
    """Rendezvous of the tasks of an ``srun`` without MASTER_ADDR: its first node, and the job's first port."""
    e = os.environ
    nodes = e.get("SLURM_STEP_NODELIST") or e["SLURM_JOB_NODELIST"]
    step = int(e.get("SLURM_STEP_ID", "0"))
    return hosts(nodes)[0], next(ports(int(e["SLURM_JOB_ID"]), int(e.get("SLURM_RESTART_COUNT", "0")) + 37 * step))


def main(argv: Sequence[str] = ()) -> int:
    """Print the assignments that a batch script evaluates. To be run on the first node of the ranks."""
    parser = argparse.ArgumentParser(prog="python -m bellwether.trainer.rendezvous", description=main.__doc__)
    parser.add_argument("--attempt", type=int, default=1, help="number of the attempt: each has a different port")
    arguments = parser.parse_args(argv)
    e = os.environ
    try:
        if e.get("SLURM_JOB_NUM_NODES") == "1":
            host = own = "127.0.0.1"
        else:
            host = address(e.get("BELLWETHER_INTERFACE"))
            own = own_address(host)
    except (OSError, ValueError) as error:
        log.setup()
        logging.getLogger("bellwether.trainer").error("BELLWETHER_INTERFACE: %s", error)
        return 2
    job, restart = int(e.get("SLURM_JOB_ID", "0")), int(e.get("SLURM_RESTART_COUNT", "0")) + arguments.attempt - 1
    port = next(port for port in ports(job, restart) if is_free(port, own))
    # The shell evaluates this: a secret on a command line would be visible to all users of the machine.
    print(f"export MASTER_ADDR={shlex.quote(host)} MASTER_PORT={port} BELLWETHER_SECRET={new_secret()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
