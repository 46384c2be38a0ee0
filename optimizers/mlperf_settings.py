"""Hyperparameters of MLPerf: of its reference convergence points, and of NVIDIA's submissions. Sources: `bellwether.optimizers.recipes`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

IMAGENET = 1_281_167  # training images

BertRow = tuple[float, int, int, int, tuple[float, float], float]

# batch -> peak lr, steps of the schedule, steps of its warm-up that lie before the first, and in all, betas, decay
BERT_REFERENCE: dict[int, BertRow] = {
    256: (3.5e-4, 13700, 0, 0, (0.9, 0.999), 0.01),
    448: (4.25e-4, 6700, 0, 0, (0.9, 0.999), 0.01),
    1536: (2e-3, 2254, 0, 0, (0.66, 0.996), 0.01),
    3072: (2e-3, 1141, 0, 100, (0.66, 0.998), 0.01),
    4096: (2.4e-3, 855, 0, 0, (0.66, 0.998), 0.01),
    4608: (3.5e-3, 700, 0, 0, (0.62, 0.9), 0.01),
    6144: (2.9293e-3, 700, 0, 0, (0.7206, 0.78921), 0.001),
    6912: (2.9293e-3, 700, 0, 0, (0.7206, 0.78921), 0.001),
    8192: (2.88293e-3, 600, 76, 287, (0.88, 0.88), 0.0166629),
    8704: (2.971656225e-3, 600, 76, 287, (0.88, 0.88), 0.0166629),
    12288: (3.1e-3, 500, 100, 300, (0.8, 0.925), 0.0166629),
    13056: (3.19540686e-3, 500, 100, 300, (0.8, 0.925), 0.0166629),
    16384: (3.3e-3, 600, 100, 290, (0.75, 0.9), 0.0166629),
}

# As above. 8,192: start_warmup_step -200000 and 170,200 steps of warm-up, which are over before the first step.
BERT_NVIDIA: dict[int, BertRow] = {
    768: (9.6e-4, 3680, 0, 0, (0.60466, 0.85437), 0.1),
    4608: (2.58e-3, 700, 200000, 200330, (0.6, 0.7), 0.1),
    8192: (3.44e-3, 600, 0, 0, (0.7206, 0.78921), 0.1),
    13888: (3.6e-3, 480, 100, 290, (0.75, 0.9), 0.0166629),
}


@dataclass(frozen=True)
class ResnetRow:
    """The settings of LARS, with a quadratic decay from the end of the warm-up."""

    lr: float
    warmup_epochs: int
    momentum: float
    weight_decay: float
    epochs: float = 0.0  # of the schedule; 0: `steps` are given
    steps: int | None = None  # of the schedule
    after_warmup: bool = False  # whether `steps` begin at the end of the warm-up

    def total(self, batch: int) -> ResnetRow:
        """With the steps of the whole schedule."""
        if self.steps is None or not self.after_warmup:
            return self
        return replace(self, steps=self.steps + self.warmup_epochs * math.ceil(IMAGENET / batch), after_warmup=False)

    def length(self, batch: int) -> float:
        """Epochs of the whole schedule."""
        return self.epochs if self.steps is None else self.steps * batch / IMAGENET


# opt_learning_rate_decay_steps counts from the end of the warm-up in the reference's code. At six of the ten batches it is the whole schedule:
# no run reaches its target after the end of its schedule; at these six that end is 0 to 2 epochs after the last epoch that a run took, and with
# the warm-up added it would be 2 to 30 epochs after it. NVIDIA's submissions at 3,264 and 32,256 have the same settings and 37 and 58 epochs.
RESNET_REFERENCE: dict[int, ResnetRow] = {
    1632: ResnetRow(7.4, 2, 0.9, 5e-5, steps=27476, after_warmup=True),
    3264: ResnetRow(10.5, 2, 0.9, 5e-5, steps=14523),
    4096: ResnetRow(10.0, 5, 0.9, 2e-4, steps=13137),
    8192: ResnetRow(17.0, 5, 0.9, 2e-4, steps=6095, after_warmup=True),
    13056: ResnetRow(12.8, 9, 0.9, 2.5e-5, steps=4710),
    32768: ResnetRow(21.2, 16, 0.94, 2.5e-5, steps=2267),
    49152: ResnetRow(19.405, 24, 0.951807, 1e-4, steps=1846),
    58880: ResnetRow(23.246, 29, 0.951807, 1e-4, steps=1785),
    65536: ResnetRow(24.699, 31, 0.951807, 1e-4, steps=1133, after_warmup=True),
    67840: ResnetRow(24.699, 31, 0.951807, 1e-4, steps=1133, after_warmup=True),
}

RESNET_NVIDIA: dict[int, ResnetRow] = {
    3200: ResnetRow(11.0, 2, 0.9, 5e-5, epochs=37),
    3264: ResnetRow(10.5, 2, 0.9, 5e-5, epochs=37),
    20480: ResnetRow(22.0, 12, 0.9, 2.5e-5, epochs=52),
    32256: ResnetRow(21.2, 16, 0.95, 2.5e-5, epochs=58),
    35840: ResnetRow(21.9, 17, 0.94, 2.5e-5, epochs=60),
    57344: ResnetRow(23.0, 32, 0.95, 2.5e-5, epochs=78),
    67456: ResnetRow(24.699, 31, 0.951807, 1e-4, epochs=90),
}
