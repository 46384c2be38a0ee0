"""LAMB under DeepSpeed, ZeRO stage 2. Stages 0, 1 and 3 need the same lines.

torchrun --standalone --nproc_per_node 2 docs/examples/deepspeed_zero.py
"""

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from bellwether.optimizers import Lamb, WarmupCosine, attach, groups

STEPS, BATCH = 100, 64  # the global batch size

deepspeed.init_distributed()
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 1))

optimizer = Lamb(groups(model), lr=0.02, weight_decay=0.01)
engine, _, _, schedule = deepspeed.initialize(
    model=model,
    optimizer=optimizer,
    # A function, because DeepSpeed wraps the optimizer; engine.step() steps the schedule.
    lr_scheduler=lambda inner: WarmupCosine(inner, batch=BATCH, total=STEPS * BATCH, warmup=10 * BATCH),
    config={
        "train_batch_size": BATCH,
        "train_micro_batch_size_per_gpu": BATCH // world,
        "gradient_clipping": 1.0,  # also the default; 0 disables clipping
        "zero_optimization": {"stage": 2},  # with offload_optimizer, also set "zero_force_ds_cpu_optimizer": False
        "zero_allow_untested_optimizer": True,  # DeepSpeed accepts only listed optimizers without it
    },
)
attach(engine)  # once; without it the first step fails

torch.manual_seed(rank)  # each process draws its own samples
for step in range(1, STEPS + 1):
    x = torch.randn(BATCH // world, 16, device=engine.device)
    loss = nn.functional.mse_loss(engine(x), x[:, :4].sin().sum(1, keepdim=True))
    engine.backward(loss)
    engine.step()
    if rank == 0 and (step == 1 or step % 20 == 0):
        print(f"step {step:3}  loss {loss.item():.4f}  lr {schedule.get_last_lr()[0]:.4f}")

if rank == 0:
    print({name: round(ratio, 3) for name, ratio in optimizer.trust_ratios().items()})
