"""Checks of the nodes' software: Python, packages, imports, GPUs, compilers, build locks. Facts in, rows out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from bellwether.launcher.doctor.result import GREEN, RED, YELLOW, Expected, Facts, Row, few, hosts_by, hosts_of, listed

IMPORT = 30.0  # seconds for torch and deepspeed; about 5 from a local disk
LOCK = 300.0  # seconds; the longest build seen took one minute, a CUDA build takes a few


def rows(nodes: Sequence[Facts], expected: Expected) -> list[Row]:
    table = [*python(nodes), *packages(nodes, expected), *imports(nodes), *gpus(nodes, expected)]
    return [*table, *compilers(nodes), *jit_locks(nodes)]


def python(nodes: Sequence[Facts]) -> list[Row]:
    versions = hosts_by(nodes, lambda node: node["python"])
    if len(versions) > 1:
        return [Row("python", RED, listed(versions), "run the same Python on all nodes")]
    return [Row("python", GREEN, f"{next(iter(versions))} ({nodes[0]['executable']})")]


def packages(nodes: Sequence[Facts], expected: Expected) -> list[Row]:
    """Packages must have the same version on all nodes, and a recent enough one. All good ones share one row."""
    checked = [_package(name, nodes, expected) for name in nodes[0]["packages"]]
    good = [f"{row.check} {row.seen}" for row in checked if row.state == GREEN and row.seen]
    table_rows = [row for row in checked if row.state != GREEN]
    return [*table_rows, *([Row("packages", GREEN, ", ".join(good))] if good else [])]


def _package(name: str, nodes: Sequence[Facts], expected: Expected) -> Row:
    versions = hosts_by(nodes, lambda node: node["packages"].get(name))
    required = name != "mpi4py" or expected.on == "mpi"
    state = RED if required else YELLOW
    install = "pip install 'bellwether[mpi]'" if name == "mpi4py" else "pip install 'bellwether[train]'"
    bound = expected.bounds.get(name, "0")
    if None in versions and (required or len(versions) > 1):
        return Row(name, state, f"not installed on {few(versions[None])}", f"{install} there")
    if len(versions) > 1:
        return Row(name, state, listed(versions), "install the version of requirements/lock.txt on all nodes")
    version = next(iter(versions))
    if version and _older(version, bound):
        return Row(name, state, f"{version} is older than {bound}", f"{install} --upgrade")
    return Row(name, GREEN, version or "")


def imports(nodes: Sequence[Facts]) -> list[Row]:
    for name in ("torch", "deepspeed"):  # in this order: deepspeed needs torch
        broken = _hosts_by_error(nodes, "imports", name)
        if broken:
            fix = f"repair the installation there; python -c 'import {name}' shows the error"
            return [Row("imports", RED, f"import {name} fails: {listed(broken)}", fix)]
    seconds = {node["host"]: sum(node["imports"].values()) for node in nodes}
    slow = [host for host, value in seconds.items() if value > IMPORT]
    if slow:
        fix = "the Python environment is on a slow shared file system; put it in a container or on local disk"
        return [Row("imports", YELLOW, f"torch and deepspeed took {max(seconds.values()):.0f} s on {few(slow)}", fix)]
    return [Row("imports", GREEN, f"torch and deepspeed in {_span(seconds.values())}")]


def gpus(nodes: Sequence[Facts], expected: Expected) -> list[Row]:
    if problem := _gpu_problem(nodes, expected):
        return [problem]
    count = _gpu_count(nodes[0])
    if count == 0:
        return [Row("GPUs", GREEN, "none; a run here trains on the CPU")]
    kinds = hosts_by(nodes, lambda node: ", ".join(node["gpu"].get("names", [])) or "of unknown model")
    drivers = hosts_by(nodes, lambda node: node["gpu"].get("driver"))
    table_rows = [Row("GPUs", GREEN, f"{count} a node, {next(iter(kinds))}")]
    if len(kinds) > 1:
        fix = "the slowest GPU limits the run: request one model, with constraint"
        table_rows = [Row("GPUs", YELLOW, listed(kinds), fix)]
    if len(drivers) > 1:
        return [*table_rows, Row("driver", YELLOW, listed(drivers), "ask the site to install one driver on all nodes")]
    return [*table_rows, Row("driver", GREEN, f"{next(iter(drivers))}, torch for CUDA {nodes[0]['gpu'].get('cuda')}")]


def _gpu_problem(nodes: Sequence[Facts], expected: Expected) -> Row | None:
    broken = _hosts_by_error(nodes, "gpu", "error")
    if broken:
        fix = "the NVIDIA driver does not respond: ask the site to repair it, and exclude the node (--exclude)"
        return Row("GPUs", RED, f"nvidia-smi fails: {listed(broken)}", fix)
    blind = [n for n in nodes if n["gpu"].get("count") and n["gpu"].get("torch") == 0]
    if blind:
        cuda, driver = blind[0]["gpu"].get("cuda"), blind[0]["gpu"].get("driver")
        seen = f"torch sees no GPU on {few(hosts_of(blind))}; nvidia-smi sees {blind[0]['gpu']['count']}"
        if cuda is None:
            return Row("GPUs", RED, f"{seen}; this torch is built without CUDA", "install torch's CUDA build")
        fix = "install a torch for an older CUDA, have the driver upgraded, or check CUDA_VISIBLE_DEVICES"
        return Row("GPUs", RED, f"{seen}; torch is for CUDA {cuda}, the driver is {driver}", fix)
    counts = hosts_by(nodes, _gpu_count)
    too_few = {count: hosts for count, hosts in counts.items() if expected.gpus and count < expected.gpus}
    if too_few:
        fix = "correct gpus_per_node in slurm/site.yaml, or select a partition, constraint or --gres that has them"
        return Row("GPUs", RED, f"{listed(too_few)}; {expected.gpus} were expected", fix)
    if len(counts) > 1:
        return Row("GPUs", RED, listed(counts), "use nodes with the same number of GPUs")
    return None


def compilers(nodes: Sequence[Facts]) -> list[Row]:
    """Yellow at most: without a compiler, the optimizers run on torch operations."""
    without = [n for n in nodes if n["compiler"]["path"] is None]
    if without:
        fix = "install g++, load a compiler module, or set CXX; without one, Lamb on a CPU is several times slower"
        return [Row("compiler", YELLOW, f"no C++ compiler on {few(hosts_of(without))}", fix)]
    broken = _hosts_by_error(nodes, "compiler", "error")
    if broken:
        path = next(n["compiler"]["path"] for n in nodes if "error" in n["compiler"])
        fix = f"repair it, or set CXX to one that works; test {path} on a file of three lines"
        return [Row("compiler", YELLOW, f"{path} fails: {listed(broken)}", fix)]
    paths = hosts_by(nodes, lambda node: node["compiler"]["path"])
    return [Row("compiler", GREEN, listed(paths, all_of=len(nodes)))]


def jit_locks(nodes: Sequence[Facts], *, stale: str = RED) -> list[Row]:
    """Build locks without a builder: every process that needs that build waits forever, without a message."""
    # In a shared home directory every node sees the lock, and only one sees its builder.
    paths: dict[str, list[tuple[Facts, str]]] = {}
    for node in nodes:
        for lock in node["locks"]:
            paths.setdefault(lock["path"], []).append((lock, node["host"]))
    table_rows = []
    for path, locks in paths.items():
        age = max(lock["age_s"] for lock, _ in locks)
        seen = f"{path} on {few([host for _, host in locks])}, {_age(age)} old"
        if any(lock["builders"] for lock, _ in locks):
            table_rows.append(Row("JIT locks", GREEN, f"{seen}, build in progress"))
        else:
            state = stale if age > LOCK else YELLOW
            fix = f"unless another machine is building it: rm {path}"
            table_rows.append(Row("JIT locks", state, f"{seen}, with no build in progress on these nodes", fix))
    return table_rows or [Row("JIT locks", GREEN, "none")]


def _hosts_by_error(nodes: Sequence[Facts], part: str, key: str) -> dict[str, list[str]]:
    """Hosts grouped by the error text in ``node[part][key]``; hosts without one are left out."""
    return hosts_by([node for node in nodes if isinstance(node[part].get(key), str)], lambda node: node[part][key])


def _gpu_count(node: Facts) -> int:
    return int(node["gpu"].get("torch") or node["gpu"].get("count") or 0)


def _older(version: str, bound: str) -> bool:
    def numbers(text: str) -> list[int]:
        match = re.match(r"\d+(\.\d+)*", text)
        return [int(part) for part in match[0].split(".")] if match else []

    have, want = numbers(version), numbers(bound)
    return bool(have) and have + [0] * (len(want) - len(have)) < want


def _span(seconds: Iterable[float]) -> str:
    ordered = sorted(seconds)
    low, high = f"{ordered[0]:.1f}", f"{ordered[-1]:.1f}"
    return f"{low} s" if low == high else f"{low} to {high} s"


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
