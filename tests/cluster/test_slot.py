"""A test cluster never uses a network that exists on the machine already."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.cluster import machine
from tests.cluster.slot import Slot


@pytest.fixture
def slot() -> Iterator[Slot]:
    reason = machine.missing()
    if reason is not None:
        pytest.skip(f"no cluster here: {reason}")
    slot = Slot()
    yield slot
    slot.remove_network()
    slot.close()


def bridge(name: str, network: str) -> None:
    for command in (f"link add {name} type bridge", f"addr add {network}.1/24 dev {name}", f"link set {name} up"):
        subprocess.run(["ip", *command.split()], check=True)


def links() -> str:
    return subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout


def test_slot_in_use_is_not_given_twice(slot: Slot) -> None:
    other = Slot()
    assert (slot.name, slot.network, slot.port) != (other.name, other.network, other.port)
    other.close()


def test_leftovers_of_a_killed_run_are_removed(slot: Slot) -> None:
    bridge(slot.name, slot.network)
    subprocess.run(["ip", "netns", "add", f"{slot.name}-node1"], check=True)
    slot.close()
    again = Slot()
    assert again.name == slot.name
    assert f" {again.name}:" not in links()
    spaces = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert f"{again.name}-node1" not in spaces
    again.close()


def test_network_that_another_program_uses_is_left_alone(slot: Slot) -> None:
    """A cluster on a network that another bridge has too would wait for its nodes in vain."""
    bridge("foreign0", slot.network)
    try:
        slot.close()
        other = Slot()
        assert other.network != slot.network
        assert " foreign0:" in links()
        other.close()
    finally:
        subprocess.run(["ip", "link", "del", "foreign0"], check=True)
