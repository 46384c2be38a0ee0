"""LAMB in transformers' Trainer with DeepSpeed.

torchrun --standalone --nproc_per_node 2 docs/examples/hf_trainer_deepspeed.py

With DeepSpeed, Trainer drops what it got as optimizers=(...), in silence: create_optimizer is the way in.
On GPUs, the lines about gloo fall away. That was not run.
"""

import os
import tempfile

import torch
from accelerate import PartialState
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from bellwether.optimizers import Lamb, WarmupLinear, attach, groups

STEPS, BATCH = 80, 64  # the global batch size


class LambTrainer(Trainer):
    def create_optimizer(self, model=None):
        if self.optimizer is None:
            self.optimizer = Lamb(groups(self.model), lr=self.args.learning_rate, weight_decay=self.args.weight_decay)
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.lr_scheduler is None:
            total = num_training_steps * BATCH
            self.lr_scheduler = WarmupLinear(optimizer or self.optimizer, batch=BATCH, total=total, warmup=total // 10)
        return self.lr_scheduler


class Attach(TrainerCallback):
    def on_train_begin(self, arguments, state, control, **kwargs):
        attach(trainer.model_wrapped)  # DeepSpeed's engine


gpu = torch.cuda.is_available()
if not gpu:  # without a backend, accelerate treats each of DeepSpeed's processes as the only one
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    PartialState(backend="gloo")

torch.manual_seed(0)
model = BertForSequenceClassification(
    BertConfig(vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
)
words = torch.randint(32, (STEPS * BATCH, 8))
samples = [
    {"input_ids": sentence, "labels": int(sentence[0] < 16)} for sentence in words
]  # class: whether the first token id is below 16

with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        accelerator_config={"use_configured_state": not gpu},
        deepspeed={
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_clipping": 1.0,  # also the default; 0 disables clipping
            "zero_optimization": {"stage": 2},  # 0 to 3
            "zero_allow_untested_optimizer": True,
        },
        per_device_train_batch_size=BATCH // int(os.environ.get("WORLD_SIZE", 1)),
        num_train_epochs=1,
        learning_rate=0.04,
        weight_decay=0.01,
        average_tokens_across_devices=False,  # BERT's loss does not support it: it would count once for each process
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = LambTrainer(model, arguments, train_dataset=samples, callbacks=[Attach()])
    trainer.train()
