"""Fixtures of the optimizer tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bellwether.optimizers import kernels


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread: synchronizing threads takes longer than updating tensors this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["reference", "cpu"])
def kernel(request: pytest.FixtureRequest) -> str:
    try:
        kernels.check(request.param)
    except RuntimeError as error:
        pytest.skip(str(error))
    return request.param
