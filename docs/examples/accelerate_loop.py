"""LAMB in your own training loop with accelerate: DDP, or DeepSpeed with --deepspeed.

torchrun --standalone --nproc_per_node 2 docs/examples/accelerate_loop.py
torchrun --standalone --nproc_per_node 2 docs/examples/accelerate_loop.py --deepspeed

On GPUs use accelerate launch instead of torchrun; not tested. (Without a GPU it starts only one process.)
"""

import sys

import torch
from accelerate import Accelerator, DeepSpeedPlugin, InitProcessGroupKwargs
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bellwether.optimizers import Lamb, WarmupCosine, attach, groups

STEPS, BATCH = 100, 64  # the global batch size

with_deepspeed, gpu = "--deepspeed" in sys.argv, torch.cuda.is_available()
config = {"train_micro_batch_size_per_gpu": "auto", "gradient_clipping": 1.0, "zero_optimization": {"stage": 2}}
accelerator = Accelerator(
    cpu=not gpu and not with_deepspeed,
    deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config) if with_deepspeed else None,
    # Without this, accelerate without a GPU treats each of DeepSpeed's processes as the only one.
    kwargs_handlers=[] if gpu else [InitProcessGroupKwargs(backend="gloo")],
)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 1))
x = torch.randn(STEPS * BATCH, 16)
samples = TensorDataset(x, x[:, :4].sin().sum(1, keepdim=True))
loader = DataLoader(samples, batch_size=BATCH // accelerator.num_processes, shuffle=True)

optimizer = Lamb(groups(model), lr=0.02, weight_decay=0.01)
# Not passed to prepare(), which would step it once for each process.
schedule = WarmupCosine(optimizer, batch=BATCH, total=STEPS * BATCH, warmup=10 * BATCH)
model, prepared, loader = accelerator.prepare(model, optimizer, loader)
if with_deepspeed:
    attach(model)  # prepare() returns DeepSpeed's engine for the model

for step, (inputs, targets) in enumerate(loader, 1):
    with accelerator.accumulate(model):
        loss = nn.functional.mse_loss(model(inputs), targets)
        accelerator.backward(loss)
        prepared.step()
        prepared.zero_grad()
    if accelerator.sync_gradients:
        schedule.step()
    if step == 1 or step % 20 == 0:
        accelerator.print(f"step {step:3}  loss {loss.item():.4f}  lr {schedule.get_last_lr()[0]:.4f}")

accelerator.print({name: round(ratio, 3) for name, ratio in optimizer.trust_ratios().items()})
