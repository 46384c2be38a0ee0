"""Checks of the nodes' systems: cores, disk space, host names, interfaces, ports. Facts in, rows out."""

from __future__ import annotations

from collections.abc import Sequence

from bellwether.launcher.doctor.result import GREEN, RED, YELLOW, Facts, Row, few, hosts_by, hosts_of, listed

GB = 1e9
# Free bytes below which a directory is yellow, and red. A run keeps several checkpoints, of 4 GB each for BERT-large; a
# prepared corpus takes tens of GB. Data workers and NCCL pass tens of MB a rank through /dev/shm, and Docker's default is 64 MB.
SPACE = {"runs": (10 * GB, GB), "cache": (10 * GB, GB), "shm": (GB, 0.1 * GB), "temp": (GB, 0.1 * GB)}
INODES = (10_000, 100)  # yellow, red; a checkpoint has one file a rank, a prepared corpus some hundreds
FIRST_PORT = 30_000  # rendezvous uses ports below; Linux's ephemeral range begins at 32768 unless a site changed it

_CHECKS = {"runs": "runs", "cache": "cache", "shm": "/dev/shm", "temp": "temp"}
_FIXES = {
    "runs": "set another directory with runs=... (--runs here), or delete old checkpoints",
    "cache": "set another directory with data.cache=..., or delete old files there",
    "shm": "give the container more shared memory (docker run --ipc=host), or lower data.workers",
    "temp": "set TMPDIR to a directory with free space",
}


def rows(nodes: Sequence[Facts], size: int) -> list[Row]:
    return [*cores(nodes), *disk_space(nodes), *host_names(nodes, size), *interfaces(nodes), *ports(nodes)]


def cores(nodes: Sequence[Facts]) -> list[Row]:
    many = [n for n in nodes if str(n["cores"]["omp"]).isdigit() and int(n["cores"]["omp"]) > n["cores"]["visible"]]
    if many:
        core_facts = many[0]["cores"]
        seen = f"OMP_NUM_THREADS={core_facts['omp']} for {core_facts['visible']} cores on {few(hosts_of(many))}"
        return [Row("cores", YELLOW, seen, "unset it, or set it to the cores of one process")]
    counts = hosts_by(nodes, lambda n: f"{n['cores']['visible']} of {n['cores']['all']} usable")
    return [Row("cores", GREEN, listed(counts, all_of=len(nodes)))]


def disk_space(nodes: Sequence[Facts]) -> list[Row]:
    """Free bytes and inodes, and whether the directories are writable. The node with the least decides."""
    return [row for role in SPACE for row in _disk(role, nodes)]


def _disk(role: str, nodes: Sequence[Facts]) -> list[Row]:
    disks = [{"host": node["host"], **node["disks"][role]} for node in nodes if role in node["disks"]]
    broken = hosts_by([disk for disk in disks if "error" in disk], lambda disk: (disk["path"], disk["error"]))
    if broken:
        (path, error), hosts = next(iter(broken.items()))
        return [Row(_CHECKS[role], RED, f"{path} on {few(hosts)}: {error}", _FIXES[role])]
    if not disks:
        return []
    low, critical = SPACE[role]
    least = min(disks, key=lambda disk: disk["free"])
    seen = f"{_bytes(least['free'])} free in {least['path']}" + (f" on {least['host']}" if len(nodes) > 1 else "")
    state = RED if least["free"] < critical else YELLOW if least["free"] < low else GREEN
    fewest = min((d for d in disks if d["inodes"] is not None), key=lambda disk: disk["inodes"], default=None)
    if fewest is not None and fewest["inodes"] < INODES[0]:
        seen += f"; {fewest['inodes']:,} inodes (files) left" + (f" on {fewest['host']}" if len(nodes) > 1 else "")
        state = RED if fewest["inodes"] < INODES[1] or state == RED else YELLOW
    return [Row(_CHECKS[role], state, seen, _FIXES[role] if state != GREEN else "")]


def host_names(nodes: Sequence[Facts], size: int) -> list[Row]:
    """Whether each node's own name resolves, and to an address that other nodes can reach."""
    unresolved = [n for n in nodes if not n["addresses"]]
    if unresolved:
        error = unresolved[0].get("unresolved", "no address")
        seen = f"{few(hosts_of(unresolved))}: the node cannot resolve its own name ({error})"
        fix = "give the name an address in DNS or /etc/hosts"
        return [Row("host name", RED if size > 1 else YELLOW, seen, fix)]
    # With an interface, the ranks connect to its address, whatever the name resolves to.
    by_name = [n for n in nodes if "address" not in n.get("interface", {})]
    loopback = [n for n in by_name if all(a.startswith("127.") or a == "::1" for a in n["addresses"])]
    if loopback and size > 1:
        address = loopback[0]["addresses"][0]
        seen = f"{few(hosts_of(loopback))}: the node's own name resolves to {address}, which no other node can reach"
        fix = "remove that line from /etc/hosts, or set the interface to use (interface: in slurm/site.yaml)"
        return [Row("host name", YELLOW, seen, fix)]
    seen = ", ".join(f"{n['host']} is {n['addresses'][0]}" for n in nodes[:4])
    return [Row("host name", GREEN, seen + (f" and {len(nodes) - 4} more" if len(nodes) > 4 else ""))]


def interfaces(nodes: Sequence[Facts]) -> list[Row]:
    configured = [n for n in nodes if "interface" in n]
    broken = [n for n in configured if "error" in n["interface"]]
    if broken:
        fix = "set interface: in slurm/site.yaml (BELLWETHER_INTERFACE) to one that all nodes have, or remove it"
        return [Row("interface", RED, f"{few(hosts_of(broken))}: {broken[0]['interface']['error']}", fix)]
    if not configured:
        return []
    seen = ", ".join(f"{n['interface']['address']} on {n['host']}" for n in configured[:3])
    more = ", ..." if len(configured) > 3 else ""
    return [Row("interface", GREEN, f"{configured[0]['interface']['name']}: {seen}{more}")]


def ports(nodes: Sequence[Facts]) -> list[Row]:
    full = [n for n in nodes if n["ports"]["free"] == 0]
    tried = nodes[0]["ports"]["tried"]
    if full:
        fix = "find the processes that listen there (ss -tlnp), or set MASTER_PORT to a free one"
        return [
            Row("ports", RED, f"all {tried} ports that a job would try first are in use on {few(hosts_of(full))}", fix)
        ]
    low = [n for n in nodes if (n["ports"]["ephemeral"] or FIRST_PORT) < FIRST_PORT]
    if low:
        seen = f"outgoing connections use ports from {low[0]['ports']['ephemeral']} up on {few(hosts_of(low))}"
        fix = "set net.ipv4.ip_local_port_range to 32768 60999; otherwise a start may find its port in use"
        return [Row("ports", YELLOW, seen, fix)]
    return [Row("ports", GREEN, f"{min(n['ports']['free'] for n in nodes)} of {tried} tried are free")]


def _bytes(count: float) -> str:
    return f"{count / GB:.1f} GB" if count >= GB else f"{count / 1e6:.0f} MB"
