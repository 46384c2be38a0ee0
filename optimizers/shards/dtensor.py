"""The pieces in DTensors, as FSDP2's fully_shard and tensor parallelism make them: a DTensor says itself how it is cut.

One all-reduce has to serve all parameters, also where some are cut over one dimension of a device mesh and others over
two. So the sums of all go over every dimension that any parameter is cut over, and of the ranks that hold the same part
of a parameter the first alone counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor

from bellwether.optimizers.shards.layout import ParameterInfo, ParameterSlice, ShardLayout, local


def shards(names: dict[Tensor, str]) -> list[ShardLayout]:
    """The shards of parameters that no engine has replaced: cut where they are DTensors, whole otherwise.

    Collective where a DTensor is cut over several dimensions: a process group over all of them may have to be made.

    Raises:
        NotImplementedError: for a placement or a mesh that cannot be summed over, and under FSDP1, which tells nothing.
    """
    for parameter, name in names.items():
        if getattr(parameter, "_fsdp_flattened", False):
            raise NotImplementedError(f"{name} is in a FullyShardedDataParallel: use fully_shard (FSDP2)")
    cuts = {p: _cut_dimensions(p, name) for p, name in names.items() if hasattr(p, "device_mesh")}
    together: dict[Any, set[int]] = {}  # mesh -> the dimensions that anything is cut over
    for mesh, dimensions in cuts.values():
        together.setdefault(mesh, set()).update(dimensions)
    groups = {mesh: _process_group(mesh, sorted(found)) for mesh, found in together.items() if found}
    made = []
    for parameter, name in names.items():
        mesh, dimensions = cuts.get(parameter, (None, set()))
        if not dimensions:
            made.append(ShardLayout.whole(parameter, name))
            continue
        first = all(mesh.get_local_rank(d) == 0 for d in together[mesh] - dimensions)
        whole = ParameterInfo(name, tuple(parameter.shape))
        made.append(ShardLayout(parameter, (whole,), tuple(_pieces(parameter)), groups[mesh], counts=first))
    return made


def _cut_dimensions(parameter: Any, name: str) -> tuple[Any, set[int]]:
    """The root mesh of a DTensor, and over which of its dimensions the DTensor is cut into several parts."""
    mesh = parameter.device_mesh
    root = _root_mesh(mesh) if mesh.mesh_dim_names else mesh
    if mesh.mesh_dim_names and not set(mesh.mesh_dim_names) <= set(root.mesh_dim_names):
        root = mesh  # several dimensions flattened to one, which the root does not have
    found = set()
    for dimension, placement in enumerate(parameter.placements):
        if placement.is_partial():
            raise NotImplementedError(f"{name}: a parameter with the placement {placement}; shard or replicate it")
        if not placement.is_replicate():
            names = mesh.mesh_dim_names
            found.add(root.mesh_dim_names.index(names[dimension]) if names else dimension)
    return root, found


def _root_mesh(mesh: Any) -> Any:
    if hasattr(mesh, "_get_root_mesh"):
        return mesh._get_root_mesh()
    from torch.distributed.device_mesh import _mesh_resources  # before torch 2.10

    return _mesh_resources.get_root_mesh(mesh)


def _process_group(mesh: Any, dimensions: list[int]) -> dist.ProcessGroup:
    if len(dimensions) == 1:
        return mesh.get_group(dimensions[0])
    if mesh.mesh_dim_names is None:
        raise NotImplementedError(
            "parameters cut over several dimensions of a device mesh without names: write mesh_dim_names=... where "
            "the mesh is made, so that a process group over these dimensions can be had"
        )
    return mesh[tuple(mesh.mesh_dim_names[d] for d in dimensions)]._flatten().get_group()


def _pieces(parameter: Any) -> Iterator[ParameterSlice]:
    """The runs of this rank's block of a parameter, which is a box in its index space."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape = tuple(parameter.shape)
    box, corner = compute_local_shape_and_global_offset(shape, parameter.device_mesh, parameter.placements)
    if tuple(local(parameter).shape) != tuple(box):
        raise NotImplementedError(f"a DTensor of shape {shape} whose local part is not the box {tuple(box)}")
    if not math.prod(box):
        return
    # Dimensions after `inner` are whole, so a run goes through them.
    inner = max((d for d in range(len(shape)) if box[d] != shape[d]), default=0)
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    length = box[inner] * strides[inner]
    outer = itertools.product(*(range(box[d]) for d in range(inner)))
    for row, index in enumerate(outer):
        start = sum((corner[d] + i) * strides[d] for d, i in enumerate(index)) + corner[inner] * strides[inner]
        yield ParameterSlice(0, row * length, start, length)
