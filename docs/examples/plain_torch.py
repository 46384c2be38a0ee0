"""LAMB in your own training loop, in one process or under DDP.

python docs/examples/plain_torch.py
torchrun --standalone --nproc_per_node 2 docs/examples/plain_torch.py
"""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bellwether.optimizers import Lamb, WarmupCosine, groups

STEPS, BATCH = 100, 64  # the global batch size

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 1))

# What differs from torch: two param groups, the optimizer, a schedule in samples.
optimizer = Lamb(groups(model), lr=0.02, weight_decay=0.01)
schedule = WarmupCosine(optimizer, batch=BATCH, total=STEPS * BATCH, warmup=10 * BATCH)

rank, world = 0, 1
if "RANK" in os.environ:  # torchrun
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(model)

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
