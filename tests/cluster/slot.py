"""Names and addresses of this machine that belong to one test cluster alone.

A bridge and a network namespace outlive a test run that was killed. A cluster on the same network as such a leftover has
two routes to it, and its nodes do not reach the controller.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import subprocess

_SLOTS = 64


class Slot:
    """One of 64 slots for a cluster; while it is open, no other process has the same one.

    Attributes:
        name: of the bridge; starts the names of links and network namespaces.
        network: the first three bytes of its addresses, free on this machine when the constructor returns.
        port: for slurmctld.

    Raises:
        RuntimeError: if there is none left.
    """

    def __init__(self) -> None:
        for number in range(_SLOTS):
            # An abstract socket belongs to a network namespace, as bridges do, and to its process: no stale locks.
            lock = socket.socket(socket.AF_UNIX)
            try:
                lock.bind(f"\0bellwether-cluster-{number}")
            except OSError:
                lock.close()
                continue
            self.name, self.network, self.port = f"bwc{number}", f"10.{64 + number}.0", 20_000 + number
            self._lock = lock
            self.remove_network()
            if not _in_use(ipaddress.ip_network(f"{self.network}.0/24")):
                return
            lock.close()
        raise RuntimeError(f"no network for a test cluster: 10.64.0.0/24 to 10.{63 + _SLOTS}.0.0/24 are in use")

    def remove_network(self) -> None:
        """Delete the slot's bridge, links and network namespaces, also those of a killed test run."""
        links = json.loads(_output("ip", "-j", "link"))
        for link in links:
            if link["ifname"] == self.name or link["ifname"].startswith(f"{self.name}v"):
                subprocess.run(["ip", "link", "del", link["ifname"]], capture_output=True)
        for line in _output("ip", "netns").splitlines():
            space = line.split()[0]
            if space.startswith(f"{self.name}-"):
                subprocess.run(["ip", "netns", "del", space], capture_output=True)

    def close(self) -> None:
        self._lock.close()


def _in_use(network: ipaddress.IPv4Network) -> bool:
    """Whether a route of this machine, except the default route, leads to the network."""
    routes = [route["dst"] for route in json.loads(_output("ip", "-j", "-4", "route"))]
    return any(network.overlaps(ipaddress.ip_network(route)) for route in routes if route != "default")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
