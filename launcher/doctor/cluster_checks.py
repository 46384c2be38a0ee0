"""Checks between nodes: rendezvous, name resolution, shared directory, clocks, bandwidth. Facts of `cluster_probe` in, rows out."""

from __future__ import annotations

from collections.abc import Sequence

from bellwether.launcher.doctor.result import GREEN, RED, YELLOW, Expected, Facts, Row, few, hosts_by, names_by_rank

SKEW = (
    1.0,
    10.0,
)  # seconds, yellow and red; NTP keeps milliseconds. Beyond 10, file times on one node lie in another's future
GLOO = 0.1  # GB/s; 1 Gb/s Ethernet carries 0.125
NCCL = 1.0  # GB/s; 10 Gb/s Ethernet carries 1.25, InfiniBand ten times that

_RENDEZVOUS_FIX = (
    "open the ports from 10000 up between the nodes, and check that all can reach the address: set interface: in "
    "slurm/site.yaml"
)
_MEASURE_FIX = "repeat with NCCL_DEBUG=INFO or TORCH_CPP_LOG_LEVEL=INFO, and set interface: in slurm/site.yaml"


def rendezvous(
    cluster: Facts | None, failures: Sequence[Facts], nodes: Sequence[Facts], expected: Expected
) -> list[Row]:
    """Whether all nodes connected to rank 0, and what failed afterwards."""
    if cluster is not None and cluster.get("missing"):
        host_names = names_by_rank(nodes, expected)
        missing = few([host_names.get(rank, f"rank {rank}") for rank in cluster["missing"]])
        reported = [f"{f['host']}: {f['error']}" for f in failures if f["rank"] in cluster["missing"]]
        silent = set(cluster["missing"]) - {node["rank"] for node in nodes}
        fix = "first fix the nodes that did not answer at all" if silent else _RENDEZVOUS_FIX
        seen = "; ".join([f"{missing} did not connect to {cluster['rendezvous']}", *reported[:2]])
        return [Row("rendezvous", RED, seen, fix)]
    table_rows = []
    if cluster is not None and "hosts" in cluster:
        through = f" through {cluster['interface']}" if cluster.get("interface") else ""
        table_rows = [Row("rendezvous", GREEN, f"{len(cluster['hosts'])} nodes at {cluster['rendezvous']}{through}")]
    if failures:
        # The first failure is the cause; the other nodes lost their connection to that one.
        stages = hosts_by(failures, lambda failure: (failure["stage"], failure["error"]))
        seen = "; ".join(f"{few(hosts)}, {stage}: {error}" for (stage, error), hosts in list(stages.items())[:2])
        check, fix = ("measuring", _MEASURE_FIX) if table_rows else ("rendezvous", _RENDEZVOUS_FIX)
        return [*table_rows, Row(check, RED, seen, fix)]
    seen = "the nodes answered, but reached no common result in time"
    return table_rows or [Row("rendezvous", RED, seen, _RENDEZVOUS_FIX)]


def rows(cluster: Facts) -> list[Row]:
    """The rows for whatever was measured before the probe ended."""
    return [*name_resolution(cluster), *shared_directory(cluster), *clocks(cluster), *bandwidths(cluster)]


def name_resolution(cluster: Facts) -> list[Row]:
    if "names" not in cluster:
        return []
    names = cluster["names"]
    if names["wrong"]:
        here, name, result = names["wrong"][0]
        more = f", and {names['count'] - 1} more" if names["count"] > 1 else ""
        seen = f"on {here}, {name} does not resolve to another machine ({result}){more}"
        return [Row("names", RED, seen, "give every node's name the same address on all nodes, in DNS or /etc/hosts")]
    return [Row("names", GREEN, f"{names['resolved']} names resolve on all nodes")]


def shared_directory(cluster: Facts) -> list[Row]:
    if "shared" not in cluster:
        return []
    facts = cluster["shared"]
    fix = "runs must be on a file system that all nodes mount at the same path: set it with runs=... (--runs here)"
    if "error" in facts:
        return [Row("shared", RED, f"the first node cannot write to {facts['dir']}: {facts['error']}", fix)]
    if facts["unseen"]:
        return [
            Row("shared", RED, f"{few(facts['unseen'])} cannot see what the first node writes to {facts['dir']}", fix)
        ]
    return [Row("shared", GREEN, f"{facts['dir']}, a new file was visible on all nodes after {facts['seconds']:.1f} s")]


def clocks(cluster: Facts) -> list[Row]:
    if "clocks" not in cluster:
        return []
    host, ahead, precision = max(cluster["clocks"], key=lambda clock: abs(clock[1]))
    limit = f"+- {max(precision, 0.0001):.4f} s"
    skew = abs(ahead) - precision  # the least that it can be
    if skew > SKEW[0]:
        seen = f"{host} is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the first node ({limit})"
        fix = "ask the site to synchronize its clock (chronyd or ntpd)"
        return [Row("clocks", RED if skew > SKEW[1] else YELLOW, seen, fix)]
    return [Row("clocks", GREEN, f"within {abs(ahead):.4f} s of the first node's ({limit})")]


_SLOW_FIXES = {
    "gloo": "use the fast network (interface: in slurm/site.yaml), or accept that steps wait for gradients",
    "NCCL": "NCCL uses a slow network: set interface: or NCCL_IB_HCA (environment:) in slurm/site.yaml",
}


def bandwidths(cluster: Facts) -> list[Row]:
    table_rows = []
    for key, name, least in (("gloo", "gloo", GLOO), ("nccl", "NCCL", NCCL)):
        facts = cluster.get(key)
        if facts is None:
            continue
        if "error" in facts:
            fix = "repeat with NCCL_DEBUG=INFO; set the network with interface: in slurm/site.yaml"
            table_rows.append(Row(name, RED, facts["error"], fix))
            continue
        seen = f"{facts['gb_s']:.2f} GB/s bus bandwidth, all-reduce of {facts['bytes'] / 1e6:.0f} MB"
        slow = facts["gb_s"] < least
        table_rows.append(Row(name, YELLOW, seen, _SLOW_FIXES[name]) if slow else Row(name, GREEN, seen))
    return table_rows
