"""LAMB in transformers' Trainer, in one process or under DDP.

python docs/examples/hf_trainer.py
torchrun --standalone --nproc_per_node 2 docs/examples/hf_trainer.py
"""

import os
import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from bellwether.optimizers import Lamb, WarmupLinear, groups

STEPS, BATCH = 80, 64  # the global batch size

torch.manual_seed(0)
model = BertForSequenceClassification(
    BertConfig(vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
)
words = torch.randint(32, (STEPS * BATCH, 8))
samples = [
    {"input_ids": sentence, "labels": int(sentence[0] < 16)} for sentence in words
]  # class: whether the first token id is below 16

optimizer = Lamb(groups(model), lr=0.04, weight_decay=0.01)
schedule = WarmupLinear(optimizer, batch=BATCH, total=STEPS * BATCH, warmup=8 * BATCH)

with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        use_cpu=not torch.cuda.is_available(),
        per_device_train_batch_size=BATCH // int(os.environ.get("WORLD_SIZE", 1)),
        num_train_epochs=1,
        max_grad_norm=1.0,
        average_tokens_across_devices=False,  # BERT's loss does not support it: it would count once for each process
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    Trainer(model, arguments, train_dataset=samples, optimizers=(optimizer, schedule)).train()
