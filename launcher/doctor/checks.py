"""What is well and what is not: facts of nodes in, rows of a table out. Pure functions; each threshold with its reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from bellwether.launcher.doctor.cluster_checks import bandwidths, clocks, meeting, resolving, shared
from bellwether.launcher.doctor.result import (
    GREEN,
    RED,
    YELLOW,
    Asked,
    Facts,
    Row,
    by,
    few,
    hosts_of,
    listed,
    names_by_rank,
)

GB = 1e9
# Free bytes below which a place is yellow, and red. A run keeps some checkpoints, for BERT-large 4 GB each; a prepared
# corpus takes tens of GB. Data workers and NCCL pass tens of MB a rank through /dev/shm, of which Docker gives 64 MB in all.
ROOM = {"runs": (10 * GB, GB), "cache": (10 * GB, GB), "shm": (GB, 0.1 * GB), "temp": (GB, 0.1 * GB)}
INODES = (10_000, 100)  # a checkpoint takes a file a rank, a prepared corpus some hundreds
IMPORT = 30.0  # seconds for torch and deepspeed; some 5 from a local disk
LOCK = 300.0  # seconds; the longest build seen took one minute, a CUDA one takes a few
FIRST_PORT = 30_000  # rendezvous takes those below; Linux's own choice begins at 32768 unless a site changed it

_PLACES = {"runs": "runs", "cache": "cache", "shm": "/dev/shm", "temp": "temp"}
_ADVICE = {
    "runs": "name another directory with runs=... (--runs here), or delete old checkpoints",
    "cache": "name another directory with data.cache=..., or delete what is old there",
    "shm": "give the container more, as in docker run --ipc=host, or lower data.workers",
    "temp": "set TMPDIR to a directory with room",
}


def rows(nodes: Sequence[Facts], group: Facts | None, troubles: Sequence[Facts], asked: Asked) -> list[Row]:
    """The whole table.

    Args:
        nodes: what each node told of itself; those that did not answer are missing.
        group: what they found out together; None for one node, or when it came to nothing.
        troubles: what nodes told before they gave up.
    """
    nodes = sorted(nodes, key=lambda node: node["rank"])
    table = answered(nodes, troubles, asked)
    if nodes:
        table += [*software(nodes, asked), *imports(nodes), *gpus(nodes, asked), *compilers(nodes), *jit_locks(nodes)]
        table += [*threads(nodes), *room(nodes), *names(nodes, asked.size), *interfaces(nodes), *port_range(nodes)]
    if nodes and asked.size > 1:
        table += meeting(group, troubles, nodes, asked)
    if group is not None:
        table += [*resolving(group), *shared(group), *clocks(group), *bandwidths(group)]
    return table


def answered(nodes: Sequence[Facts], troubles: Sequence[Facts], asked: Asked) -> list[Row]:
    missing = [rank for rank in range(asked.size) if rank not in {node["rank"] for node in nodes}]
    if not missing:
        return [
            Row("nodes", GREEN, f"{few(hosts_of(nodes))} answered" + (f", all {asked.size}" if asked.size > 1 else ""))
        ]
    known = names_by_rank(nodes, asked)
    silent = f"{few([known.get(rank, f'rank {rank}') for rank in missing])} ({len(missing)} of {asked.size})"
    if not known:
        silent = f"any of {asked.size} nodes"
    told = [f"{t['host']}, {t['stage']}: {t['error']}" for t in troubles if t["rank"] in missing]
    well = {name for rank, name in enumerate(asked.names) if rank not in missing}
    said = [f"{who}: {words}" for who, words in asked.noise if who not in well]
    seen = f"no answer from {silent}"
    advice = next((do for pattern, do in _CAUSES for words in [*told, *said] if re.search(pattern, words)), _SILENT)
    return [Row("nodes", RED, "; ".join([seen, *told[:2], *said[:2]]), advice)]


_SILENT = "look whether those nodes are up, and try one of them alone"
# What launchers say when a node does not come up, and what helps.
_CAUSES = [
    (r"Host key verification failed", "log in by hand once, ssh HOST, and say yes to its key"),
    (r"Permission denied \(", "let ssh in without a password: ssh-copy-id HOST"),
    (
        r"Could not resolve hostname",
        "correct the name in the host file, or give the host an address in DNS or /etc/hosts",
    ),
    (r"Connection (refused|timed out)|No route to host", "look whether the host is up and runs sshd, and its firewall"),
    (
        r"[Ii]nvalid (partition|account|qos|feature)",
        "correct it in slurm/site.yaml; sinfo and sacctmgr show what there is",
    ),
    (
        r"Unable to allocate resources|[Ii]mmediate|have not been allocated|queued and waiting",
        "so many nodes were not free: ask for fewer (--nodes), for another partition (slurm/site.yaml), or from inside a job",
    ),
    (r"controller|slurm_load|configuration source", "no SLURM answers here: run it on a login node of the cluster"),
    (r"unrecognized option|invalid option", "take that option out of sbatch: or srun: in slurm/site.yaml"),
    (
        r"No module named '?(launcher|trainer)",
        "install bellwether on that node, or put it on a file system that all share",
    ),
    (
        r"No such file or directory|not found|unable to find",
        "Python is not there on that node: put it on a file system that all share, or name another with venv: in "
        "slurm/site.yaml",
    ),
]


def software(nodes: Sequence[Facts], asked: Asked) -> list[Row]:
    """Python and packages: the same everywhere, and new enough. What is well goes into one row."""
    found = []
    pythons = by(nodes, lambda node: node["python"])
    if len(pythons) > 1:
        found.append(Row("python", RED, listed(pythons), "run the same Python on all nodes"))
    else:
        found.append(Row("python", GREEN, f"{next(iter(pythons))} ({nodes[0]['executable']})"))
    packages = [_package(name, nodes, asked) for name in nodes[0]["packages"]]
    found += [row for row in packages if row.state != GREEN]
    well = [f"{row.check} {row.seen}" for row in packages if row.state == GREEN and row.seen]
    return [*found, *([Row("packages", GREEN, ", ".join(well))] if well else [])]


def _package(name: str, nodes: Sequence[Facts], asked: Asked) -> Row:
    versions = by(nodes, lambda node: node["packages"].get(name))
    wanted = name != "mpi4py" or asked.on == "mpi"
    state = RED if wanted else YELLOW
    install = "pip install 'bellwether[mpi]'" if name == "mpi4py" else "pip install 'bellwether[train]'"
    bound = asked.bounds.get(name, "0")
    if None in versions and (wanted or len(versions) > 1):
        return Row(name, state, f"not installed on {few(versions[None])}", f"{install} there")
    if len(versions) > 1:
        return Row(name, state, listed(versions), "install the same everywhere, as requirements/lock.txt has it")
    version = next(iter(versions))
    if version and _older(version, bound):
        return Row(name, state, f"{version} is older than {bound}", f"{install} --upgrade")
    return Row(name, GREEN, version or "")


def imports(nodes: Sequence[Facts]) -> list[Row]:
    for name in ("torch", "deepspeed"):  # in this order: without torch there is no deepspeed either
        broken = _said(nodes, "imports", name)
        if broken:
            advice = f"mend the installation there; python -c 'import {name}' shows it"
            return [Row("imports", RED, f"import {name} fails: {listed(broken)}", advice)]
    took = {node["host"]: sum(node["imports"].values()) for node in nodes}
    slow = [host for host, seconds in took.items() if seconds > IMPORT]
    if slow:
        advice = "python environment on a slow shared file system; put it in a container or on local disk"
        return [Row("imports", YELLOW, f"torch and deepspeed took {max(took.values()):.0f} s on {few(slow)}", advice)]
    return [Row("imports", GREEN, f"torch and deepspeed in {_span(took.values(), 's', 1)}")]


def gpus(nodes: Sequence[Facts], asked: Asked) -> list[Row]:
    broken = _said(nodes, "gpu", "error")
    if broken:
        advice = "the NVIDIA driver does not answer: ask the site to mend it, and leave the node out (--exclude)"
        return [Row("GPUs", RED, f"nvidia-smi fails: {listed(broken)}", advice)]
    blind = [n for n in nodes if n["gpu"].get("count") and n["gpu"].get("torch") == 0]
    if blind:
        cuda, driver = blind[0]["gpu"].get("cuda"), blind[0]["gpu"].get("driver")
        seen = f"torch sees no GPU on {few(hosts_of(blind))}; nvidia-smi sees {blind[0]['gpu']['count']}"
        if cuda is None:
            return [Row("GPUs", RED, f"{seen}; this torch is built without CUDA", "install torch's CUDA build")]
        advice = "take a torch for an older CUDA, have the driver renewed, or look at CUDA_VISIBLE_DEVICES"
        return [Row("GPUs", RED, f"{seen}; torch is for CUDA {cuda}, the driver is {driver}", advice)]
    counts = by(nodes, _gpu_count)
    if asked.gpus and any(count < asked.gpus for count in counts):
        few_gpus = {count: hosts for count, hosts in counts.items() if count < asked.gpus}
        advice = "correct gpus_per_node in slurm/site.yaml, or name the partition, constraint or --gres that has them"
        return [Row("GPUs", RED, f"{listed(few_gpus)}; {asked.gpus} were expected", advice)]
    if len(counts) > 1:
        return [Row("GPUs", RED, listed(counts), "take nodes that have equally many")]
    count = next(iter(counts))
    if count == 0:
        return [Row("GPUs", GREEN, "none; a run here trains on the CPU")]
    kinds = by(nodes, lambda node: ", ".join(node["gpu"].get("names", [])) or "of unknown make")
    drivers = by(nodes, lambda node: node["gpu"].get("driver"))
    found = [Row("GPUs", GREEN, f"{count} a node, {next(iter(kinds))}")]
    if len(kinds) > 1:
        found = [Row("GPUs", YELLOW, listed(kinds), "the slowest sets the pace: ask for one kind, with constraint")]
    if len(drivers) > 1:
        return [*found, Row("driver", YELLOW, listed(drivers), "have the site bring all nodes to one driver")]
    return [*found, Row("driver", GREEN, f"{next(iter(drivers))}, torch for CUDA {nodes[0]['gpu'].get('cuda')}")]


def compilers(nodes: Sequence[Facts]) -> list[Row]:
    """Yellow at most: without one, the optimizers run on torch's own operations."""
    without = [n for n in nodes if n["compiler"]["path"] is None]
    if without:
        advice = (
            "install g++, load a compiler's module, or set CXX; without one, Lamb on a CPU takes several times as long"
        )
        return [Row("compiler", YELLOW, f"no C++ compiler on {few(hosts_of(without))}", advice)]
    broken = _said(nodes, "compiler", "error")
    if broken:
        path = next(n["compiler"]["path"] for n in nodes if "error" in n["compiler"])
        advice = f"mend it, or set CXX to one that works; try {path} on a file of three lines"
        return [Row("compiler", YELLOW, f"{path} fails: {listed(broken)}", advice)]
    return [Row("compiler", GREEN, listed(by(nodes, lambda node: node["compiler"]["path"]), all_of=len(nodes)))]


def jit_locks(nodes: Sequence[Facts], *, stale: str = RED) -> list[Row]:
    """Locks of builds that nobody is at any more: whatever needs that build waits for ever, in silence."""
    # A home directory that all share shows one lock on each node, and its builder on one.
    paths: dict[str, list[tuple[Facts, str]]] = {}
    for node in nodes:
        for lock in node["locks"]:
            paths.setdefault(lock["path"], []).append((lock, node["host"]))
    found = []
    for path, looks in paths.items():
        age = max(lock["age_s"] for lock, _ in looks)
        seen = f"{path} on {few([host for _, host in looks])}, {_age(age)} old"
        if any(lock["builders"] for lock, _ in looks):
            found.append(Row("JIT locks", GREEN, f"{seen}, being built now"))
        else:
            advice = f"if no other machine builds it now: rm {path}"
            found.append(
                Row("JIT locks", stale if age > LOCK else YELLOW, f"{seen}, and nobody here builds it", advice)
            )
    return found or [Row("JIT locks", GREEN, "none")]


def threads(nodes: Sequence[Facts]) -> list[Row]:
    many = [n for n in nodes if str(n["cores"]["omp"]).isdigit() and int(n["cores"]["omp"]) > n["cores"]["visible"]]
    if many:
        cores = many[0]["cores"]
        seen = f"OMP_NUM_THREADS={cores['omp']} for {cores['visible']} cores on {few(hosts_of(many))}"
        return [Row("cores", YELLOW, seen, "unset it, or set it to the cores of one process")]
    seen = listed(by(nodes, lambda n: f"{n['cores']['visible']} of {n['cores']['all']} to use"), all_of=len(nodes))
    return [Row("cores", GREEN, seen)]


def room(nodes: Sequence[Facts]) -> list[Row]:
    """Free space and inodes, and whether one can write: the node that has the least decides."""
    found = []
    for place, (little, nothing) in ROOM.items():
        disks = [(node["disks"][place], node["host"]) for node in nodes if place in node["disks"]]
        broken = by(
            [{"host": host, **disk} for disk, host in disks if "error" in disk], lambda d: (d["path"], d["error"])
        )
        if broken:
            (path, error), hosts = next(iter(broken.items()))
            found.append(Row(_PLACES[place], RED, f"{path} on {few(hosts)}: {error}", _ADVICE[place]))
            continue
        if not disks:
            continue
        free, path, host = min((disk["free"], disk["path"], host) for disk, host in disks)
        inodes = min(((disk["inodes"], host) for disk, host in disks if disk["inodes"] is not None), default=(None, ""))
        seen = f"{_bytes(free)} free in {path}" + (f" on {host}" if len(nodes) > 1 else "")
        state = RED if free < nothing else YELLOW if free < little else GREEN
        if inodes[0] is not None and inodes[0] < INODES[0]:
            seen += f"; {inodes[0]:,} inodes (files) left" + (f" on {inodes[1]}" if len(nodes) > 1 else "")
            state = RED if inodes[0] < INODES[1] or state == RED else YELLOW
        found.append(Row(_PLACES[place], state, seen, _ADVICE[place] if state != GREEN else ""))
    return found


def names(nodes: Sequence[Facts], size: int) -> list[Row]:
    lost = [n for n in nodes if not n["addresses"]]
    if lost:
        seen = f"{few(hosts_of(lost))}: the node does not find its own name ({lost[0].get('unresolved', 'no address')})"
        advice = "give the name an address in DNS or /etc/hosts"
        return [Row("host name", RED if size > 1 else YELLOW, seen, advice)]
    # With an interface, the nodes meet on its address, whatever the name stands for.
    unnamed = [n for n in nodes if "address" not in n.get("interface", {})]
    inward = [n for n in unnamed if all(a.startswith("127.") or a == "::1" for a in n["addresses"])]
    if inward and size > 1:
        seen = f"{few(hosts_of(inward))}: the node takes its own name for {inward[0]['addresses'][0]}, where none else can reach it"
        advice = "take that line out of /etc/hosts, or name the interface to meet on (interface: in slurm/site.yaml)"
        return [Row("host name", YELLOW, seen, advice)]
    seen = ", ".join(f"{n['host']} is {n['addresses'][0]}" for n in nodes[:4])
    return [Row("host name", GREEN, seen + (f" and {len(nodes) - 4} more" if len(nodes) > 4 else ""))]


def interfaces(nodes: Sequence[Facts]) -> list[Row]:
    given = [n for n in nodes if "interface" in n]
    broken = [n for n in given if "error" in n["interface"]]
    if broken:
        advice = "set interface: in slurm/site.yaml (BELLWETHER_INTERFACE) to one that all nodes have, or leave it out"
        return [Row("interface", RED, f"{few(hosts_of(broken))}: {broken[0]['interface']['error']}", advice)]
    if not given:
        return []
    seen = ", ".join(f"{n['interface']['address']} on {n['host']}" for n in given[:3])
    return [Row("interface", GREEN, f"{given[0]['interface']['name']}: {seen}" + (", ..." if len(given) > 3 else ""))]


def port_range(nodes: Sequence[Facts]) -> list[Row]:
    full = [n for n in nodes if n["ports"]["free"] == 0]
    tried = nodes[0]["ports"]["tried"]
    if full:
        advice = "see who listens there (ss -tlnp), or set MASTER_PORT to a free one"
        return [Row("ports", RED, f"all {tried} that a job would try first are taken on {few(hosts_of(full))}", advice)]
    low = [n for n in nodes if (n["ports"]["ephemeral"] or FIRST_PORT) < FIRST_PORT]
    if low:
        seen = f"outgoing connections take ports from {low[0]['ports']['ephemeral']} up on {few(hosts_of(low))}"
        advice = "set net.ipv4.ip_local_port_range to 32768 60999, or a start may now and then find its port taken"
        return [Row("ports", YELLOW, seen, advice)]
    return [Row("ports", GREEN, f"{min(n['ports']['free'] for n in nodes)} of {tried} tried are free")]


def commands(missing: Sequence[str], on: str) -> list[Row]:
    """Whether what starts the run is there: ``missing`` names the commands that are not."""
    if missing:
        advice = f"run this where --on {on} can work, as on a login node, or load its module"
        return [Row("commands", RED, f"{', '.join(missing)} not found", advice)]
    return []


def _said(nodes: Sequence[Facts], part: str, key: str) -> dict[str, list[str]]:
    """Hosts by the text that stands where, all being well, is none."""
    return by([node for node in nodes if isinstance(node[part].get(key), str)], lambda node: node[part][key])


def _gpu_count(node: Facts) -> int:
    return int(node["gpu"].get("torch") or node["gpu"].get("count") or 0)


def _older(version: str, bound: str) -> bool:
    def numbers(text: str) -> list[int]:
        match = re.match(r"\d+(\.\d+)*", text)
        return [int(part) for part in match[0].split(".")] if match else []

    have, want = numbers(version), numbers(bound)
    return bool(have) and have + [0] * (len(want) - len(have)) < want


def _span(values: Iterable[float], unit: str, digits: int) -> str:
    listed = sorted(values)
    low, high = f"{listed[0]:.{digits}f}", f"{listed[-1]:.{digits}f}"
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def _age(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.0f} h"
    )


def _bytes(count: float) -> str:
    return f"{count / GB:.1f} GB" if count >= GB else f"{count / 1e6:.0f} MB"
