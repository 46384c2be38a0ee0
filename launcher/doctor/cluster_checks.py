"""What is well between the nodes and what is not: the facts that `bellwether.launcher.doctor.cluster_probe` found, as rows. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from bellwether.launcher.doctor.result import GREEN, RED, YELLOW, Asked, Facts, Row, by, few, names_by_rank

SKEW = (1.0, 10.0)  # seconds; NTP keeps milliseconds. Beyond 10, files of one node are made in another's future
GLOO = 0.1  # GB/s; 1 Gb/s Ethernet carries 0.125
NCCL = 1.0  # GB/s; 10 Gb/s Ethernet carries 1.25, InfiniBand ten times as much

_MEETING = (
    "open the ports from 10000 up between the nodes, and see that the address is one that all can reach: interface: in "
    "slurm/site.yaml"
)
_AFTER = "run it again with NCCL_DEBUG=INFO or TORCH_CPP_LOG_LEVEL=INFO set, and interface: in slurm/site.yaml"


def meeting(group: Facts | None, troubles: Sequence[Facts], nodes: Sequence[Facts], asked: Asked) -> list[Row]:
    """Whether all came together, and what went wrong afterwards."""
    if group is not None and group.get("missing"):
        known = names_by_rank(nodes, asked)
        late = few([known.get(rank, f"rank {rank}") for rank in group["missing"]])
        told = [f"{t['host']}: {t['error']}" for t in troubles if t["rank"] in group["missing"]]
        silent = set(group["missing"]) - {node["rank"] for node in nodes}
        advice = "see first to the nodes that did not answer at all" if silent else _MEETING
        return [Row("meeting", RED, "; ".join([f"{late} did not come to {group['meeting']}", *told[:2]]), advice)]
    found = []
    if group is not None and "hosts" in group:
        through = f" through {group['interface']}" if group.get("interface") else ""
        found = [Row("meeting", GREEN, f"{len(group['hosts'])} nodes at {group['meeting']}{through}")]
    if troubles:
        # What the first one met is the cause; the others lost their connection to it.
        stages = by(troubles, lambda trouble: (trouble["stage"], trouble["error"]))
        seen = "; ".join(f"{few(hosts)}, {stage}: {error}" for (stage, error), hosts in list(stages.items())[:2])
        return [*found, Row("measuring" if found else "meeting", RED, seen, _AFTER if found else _MEETING)]
    return found or [Row("meeting", RED, "the nodes answered, but came to no common result in time", _MEETING)]


def resolving(group: Facts) -> list[Row]:
    if "names" not in group:
        return []
    wrong = group["names"]["wrong"]
    if wrong:
        here, name, came = wrong[0]
        more = f", and {group['names']['count'] - 1} more" if group["names"]["count"] > 1 else ""
        advice = "give every node's name one address for all, in DNS or /etc/hosts"
        return [Row("names", RED, f"on {here}, {name} does not resolve to another machine ({came}){more}", advice)]
    return [Row("names", GREEN, f"{group['names']['asked']} names resolve on all nodes")]


def shared(group: Facts) -> list[Row]:
    if "shared" not in group:
        return []
    told = group["shared"]
    advice = "runs must lie on a file system that all nodes mount at the same path: name it with runs=... (--runs here)"
    if "error" in told:
        return [Row("shared", RED, f"{told['dir']} cannot be written to by the first node: {told['error']}", advice)]
    if told["unseen"]:
        return [
            Row("shared", RED, f"{few(told['unseen'])} cannot see what the first node writes to {told['dir']}", advice)
        ]
    return [Row("shared", GREEN, f"{told['dir']}, a new file was there for all after {told['seconds']:.1f} s")]


def clocks(group: Facts) -> list[Row]:
    if "clocks" not in group:
        return []
    host, ahead, precision = max(group["clocks"], key=lambda clock: abs(clock[1]))
    limit = f"+- {max(precision, 0.0001):.4f} s"
    advice = "have the site set its clock (chronyd or ntpd)"
    skew = abs(ahead) - precision  # as much as it is at least
    if skew > SKEW[0]:
        seen = f"{host} is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the first node ({limit})"
        return [Row("clocks", RED if skew > SKEW[1] else YELLOW, seen, advice)]
    return [Row("clocks", GREEN, f"within {abs(ahead):.4f} s of the first node's ({limit})")]


def bandwidths(group: Facts) -> list[Row]:
    found = []
    for key, name, least in (("gloo", "gloo", GLOO), ("nccl", "NCCL", NCCL)):
        told = group.get(key)
        if told is None:
            continue
        if "error" in told:
            advice = "run it again with NCCL_DEBUG=INFO set; name the network with interface: in slurm/site.yaml"
            found.append(Row(name, RED, told["error"], advice))
            continue
        seen = f"{told['gb_s']:.2f} GB/s bus bandwidth, all-reduce of {told['bytes'] / 1e6:.0f} MB"
        if told["gb_s"] < least:
            advice = (
                "name the fast network (interface: in slurm/site.yaml), or accept that its steps wait for gradients"
            )
            if name == "NCCL":
                advice = (
                    "NCCL goes over a slow network: set interface: or NCCL_IB_HCA (environment:) in slurm/site.yaml"
                )
            found.append(Row(name, YELLOW, seen, advice))
        else:
            found.append(Row(name, GREEN, seen))
    return found
