"""Attention inside documents through compiled `flex_attention`."""

from __future__ import annotations

import pytest
import torch

from bellwether.trainer.config.schema import ModelConfig
from bellwether.trainer.data import Dataset
from bellwether.trainer.models import build, document_attention
from tests.trainer.models import families

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.mark.parametrize("length", [512, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flex_attention_trains_as_the_dense_mask_does(dtype: torch.dtype, length: int) -> None:
    samples = None
    keys = families.keys("modernbert", hidden_size=128, local_attention=64)
    section = ModelConfig.model_validate({"kind": "masked-lm", "config": keys})
    model = build(section, Dataset(samples, samples, 100)).model.to("cuda", dtype)  # type: ignore[arg-type]
    documents = (torch.arange(length, device="cuda") // 90).expand(3, -1)
    assert document_attention.obstacle(model, dtype, documents) is None
