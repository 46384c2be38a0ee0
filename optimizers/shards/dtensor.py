"""The slices in DTensors, of FSDP2's fully_shard and of tensor parallelism. Their placements have all the information.

One all-reduce has to serve all parameters, also when some are sharded over one dimension of a device mesh and others over
two. So all sums go over every dimension that any parameter is sharded over, and of the ranks that hold the same part of
a parameter only the first is counted.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from bellwether.optimizers.shards.layout import Box, ParameterInfo, ShardLayout, is_dtensor, local


def shards(names: dict[Tensor, str]) -> list[ShardLayout]:
    """The shards of parameters that no engine has replaced: slices of DTensors, and other parameters whole.

    Collective if a DTensor is sharded over several dimensions, for which a process group may have to be created.

    Raises:
        NotImplementedError: for a placement or a mesh that cannot be summed over, and for FSDP1, which hides the layout.
    """
    for parameter, name in names.items():
        if getattr(parameter, "_fsdp_flattened", False):
            raise NotImplementedError(f"{name} is in a FullyShardedDataParallel: use fully_shard (FSDP2)")
    sharded = {p: _sharded_dimensions(p, name) for p, name in names.items() if is_dtensor(p)}
    by_mesh: dict[Any, set[int]] = {}  # the dimensions that any parameter is sharded over
    for mesh, dimensions in sharded.values():
        by_mesh.setdefault(mesh, set()).update(dimensions)
    groups = {mesh: _process_group(mesh, sorted(dimensions)) for mesh, dimensions in by_mesh.items() if dimensions}
    layouts = []
    for parameter, name in names.items():
        mesh, dimensions = sharded.get(parameter, (None, set()))
        if not dimensions:
            layouts.append(ShardLayout.whole(parameter, name))
            continue
        is_first = all(mesh.get_local_rank(d) == 0 for d in by_mesh[mesh] - dimensions)
        whole = ParameterInfo(name, tuple(parameter.shape))
        layouts.append(ShardLayout(parameter, (whole,), _box(parameter), groups[mesh], is_counted=is_first))
    return layouts


def _sharded_dimensions(parameter: Any, name: str) -> tuple[Any, set[int]]:
    """The root mesh of a DTensor, and the dimensions of it that the DTensor is sharded over."""
    mesh = parameter.device_mesh
    root = _root_mesh(mesh) if mesh.mesh_dim_names else mesh
    if mesh.mesh_dim_names and not set(mesh.mesh_dim_names) <= set(root.mesh_dim_names):
        root = mesh  # several dimensions flattened into one, which the root does not have
    sharded_dimensions = set()
    for dimension, placement in enumerate(parameter.placements):
        if placement.is_partial():
            raise NotImplementedError(f"{name}: a parameter with the placement {placement}; shard or replicate it")
        if not placement.is_replicate():
            names = mesh.mesh_dim_names
            sharded_dimensions.add(root.mesh_dim_names.index(names[dimension]) if names else dimension)
    return root, sharded_dimensions


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
            "parameters sharded over several dimensions of a device mesh without names: pass mesh_dim_names=... where "
            "the mesh is created, so that a process group over these dimensions can be created"
        )
    return mesh[tuple(mesh.mesh_dim_names[d] for d in dimensions)]._flatten().get_group()


def _box(parameter: Any) -> Box:
    """This rank's block of a parameter."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape = tuple(parameter.shape)
    size, corner = compute_local_shape_and_global_offset(shape, parameter.device_mesh, parameter.placements)
    if tuple(local(parameter).shape) != tuple(size):
        raise NotImplementedError(f"a DTensor of shape {shape} whose local part is not the box {tuple(size)}")
    return Box(shape, tuple(corner), tuple(size))
