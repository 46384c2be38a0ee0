"""LAMB under FSDP2: fully_shard turns the parameters into DTensors, which carry their sharding.

torchrun --standalone --nproc_per_node 2 docs/examples/fsdp2.py
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from bellwether.optimizers import Lamb, WarmupCosine, groups

STEPS, BATCH = 100, 64  # the global batch size

mesh = init_device_mesh("cpu", (2,))  # "cuda" on GPUs
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 1))
for layer in model:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)

# After fully_shard, which replaces the parameters. No attach is needed.
optimizer = Lamb(groups(model), lr=0.02, weight_decay=0.01)
schedule = WarmupCosine(optimizer, batch=BATCH, total=STEPS * BATCH, warmup=10 * BATCH)

torch.manual_seed(rank)  # each process draws its own samples
for step in range(1, STEPS + 1):
    x = torch.randn(BATCH // world, 16)
    loss = nn.functional.mse_loss(model(x), x[:, :4].sin().sum(1, keepdim=True))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
    if rank == 0 and (step == 1 or step % 20 == 0):
        print(f"step {step:3}  loss {loss.item():.4f}  lr {schedule.get_last_lr()[0]:.4f}")

if rank == 0:
    print({name: round(ratio, 3) for name, ratio in optimizer.trust_ratios().items()})
