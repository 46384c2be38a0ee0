"""Any architecture of transformers by ``config`` or ``init``: what is loaded, drawn, said and refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bellwether.trainer.config import ConfigError
from bellwether.trainer.config.schema import ModelConfig
from bellwether.trainer.data import Dataset
from bellwether.trainer.models import model_config, pretrained
from bellwether.trainer.models.architecture import Architecture, for_checkpoint
from bellwether.trainer.models.presets import PRESETS

NO_SAMPLES: Any = None
TINY = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


class Encoder(Architecture):
    auto_class: ClassVar[str] = "AutoModelForMaskedLM"
    data_kind: ClassVar[str] = "text"
    kind: Literal["encoder-of-test"] = "encoder-of-test"


class Classifier(Architecture):
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    data_kind: ClassVar[str] = "text"
    kind: Literal["classifier-of-test"] = "classifier-of-test"


# They have registered themselves, and the reference of keys would list them.
for _kind in ("encoder-of-test", "classifier-of-test"):
    ModelConfig.kinds().pop(_kind)


def build(section: Architecture, vocabulary: int = 100, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    tokenizer = SimpleNamespace(pad_token_id=0, cls_token_id=2, sep_token_id=3)
    data = Dataset(NO_SAMPLES, NO_SAMPLES, vocabulary_size=vocabulary, tokenizer=tokenizer)
    return pretrained.build(
        section, model_config.make_config(section, **model_config.text_keys(section, data), **changes)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export of a tiny BERT."""
    build(Encoder(config=TINY), seed=7).save_pretrained(tmp_path / "export")
    return tmp_path / "export"


def refusal(section: Architecture, **options: Any) -> str:
    with pytest.raises(ConfigError) as error:
        build(section, **options)
    return str(error.value)


def test_fresh_weights_are_a_function_of_the_seed() -> None:
    first, again, other = (build(Encoder(config=TINY), seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(
        first["cls.predictions.transform.dense.weight"], other["cls.predictions.transform.dense.weight"]
    )


def test_pretrained_weights_are_loaded_and_a_new_head_is_drawn_from_the_seed(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "bellwether")
    expected = build(Encoder(config=TINY), seed=7).state_dict()
    models = [build(Classifier(init=str(folder)), seed=s, num_labels=3) for s in (1, 1, 2)]
    assert all(model.training for model in models)
    first, again, other = (model.state_dict() for model in models)
    body = [name for name in first if name in expected]
    assert len(body) == 37
    assert all(torch.equal(first[name], expected[name]) for name in body)
    assert first["classifier.weight"].shape == (3, 16)
    assert torch.equal(first["classifier.weight"], again["classifier.weight"])
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    assert len(caplog.messages) == 3  # one line each
    assert (
        "newly initialized: 4 (bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias, classifier.weight)"
        in caplog.text
    )
    assert "left out: 5 (cls.predictions.bias" in caplog.text


def test_head_of_another_number_of_classes_is_newly_initialized(folder: Path, tmp_path: Path, caplog: Any) -> None:
    build(Classifier(init=str(folder)), num_labels=3).save_pretrained(tmp_path / "three")
    caplog.set_level("INFO", "bellwether")
    model = build(Classifier(init=str(tmp_path / "three")), num_labels=5)
    assert model.classifier.weight.shape == (5, 16)
    assert (
        "newly initialized: 2 (classifier.bias, classifier.weight), 2 of them for their shape ((3,) there, (5,) here)"
        in caplog.text
    )


def test_weights_in_another_type_are_read_as_float32(folder: Path, tmp_path: Path) -> None:
    build(Encoder(init=str(folder))).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    model = build(Encoder(init=str(tmp_path / "half")))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_keys_beside_init_change_what_is_no_shape(folder: Path) -> None:
    model = build(Encoder(init=str(folder), config={"hidden_dropout_prob": 0.3}))
    assert model.config.hidden_dropout_prob == 0.3
    assert model.config.hidden_size == 16


def test_refusals_name_key_value_and_fix(folder: Path, tmp_path: Path) -> None:
    assert "bert.embeddings.LayerNorm.bias is [16] there and [32] here; remove the keys" in refusal(
        Encoder(init=str(folder), config={"hidden_size": 32})
    )
    assert refusal(Encoder(init=str(tmp_path / "none"))).startswith(
        f"model.init: '{tmp_path}/none': no such folder; name"
    )
    assert "the tokenizer has 120 tokens, and the model a vocabulary of 100" in refusal(
        Encoder(init=str(folder)), vocabulary=120
    )
    assert "model.config.vocab_size: 90: the tokenizer has 100 tokens" in refusal(
        Encoder(config={**TINY, "vocab_size": 90})
    )
    assert refusal(Encoder(config={**TINY, "hiden_size": 1})).endswith("did you mean hidden_size?")
    assert "has no model_type 'bertt'; did you mean bert?" in refusal(Encoder(config={"model_type": "bertt"}))
    assert "expected int, got str" in refusal(Encoder(config={**TINY, "hidden_size": "x"}))
    assert "transformers has no AutoModelForMaskedLM of vit" in refusal(Encoder(config={"model_type": "vit"}))
    assert "does not exist" in refusal(Encoder(config="no.json"))


def test_model_for_a_checkpoint_needs_no_pretrained_weights(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "model.safetensors").unlink()
    caplog.set_level("INFO", "bellwether")
    with for_checkpoint():
        model = build(Classifier(init=str(folder)), num_labels=3)
    assert model.classifier.weight.shape == (3, 16)
    assert not caplog.messages
    assert "has no model.safetensors" in refusal(Classifier(init=str(folder)))


def test_pickled_weights_are_refused(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    message = refusal(Encoder(init=str(folder)))
    assert (
        "its weights are pickled (pytorch_model.bin), and unpickling runs code; convert them to safetensors" in message
    )
    (folder / "pytorch_model.bin").unlink()
    assert "has no model.safetensors" in refusal(Encoder(init=str(folder)))


def test_weights_of_another_architecture_are_refused(folder: Path) -> None:
    other = {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k != "architectures"}
    (folder / "config.json").write_text(json.dumps({**other, "model_type": "roberta"}))
    assert "tensors of the RobertaForMaskedLM's body: roberta.embeddings.LayerNorm.bias" in refusal(
        Encoder(init=str(folder))
    )


@pytest.mark.parametrize("config, message", [
    (None, "the model needs config or init"),
    ("bert-bse", "'bert-bse' is not a preset; did you mean bert-base?"),
    ({"preset": "modernbert"}, "did you mean modernbert-base?"),
    ({"hidden_size": 16}, "a mapping needs model_type"),
])  # fmt: skip
def test_config_is_checked_without_reading_anything(config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        Encoder(config=config)


def test_init_with_another_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.init has the architecture"):
        Encoder(config="bert-base", init="folder")


def test_config_file_and_its_folder_give_the_same_keys(folder: Path) -> None:
    from_file = Encoder(config=str(folder / "config.json")).keys()
    assert from_file == Encoder(config=str(folder)).keys()
    assert from_file["hidden_size"] == 16
    assert "architectures" not in from_file


def test_keys_of_a_preset_can_be_changed() -> None:
    section = Encoder(config={"preset": "modernbert-base", "num_hidden_layers": 2})
    assert section.keys() == {**PRESETS["modernbert-base"], "num_hidden_layers": 2}
    assert (section.label, Encoder(config="bert-base").label) == ("modernbert-base", "bert-base")


@pytest.mark.parametrize("name, millions", [
    ("bert-base", 109.5), ("roberta-base", 124.7), ("distilbert-base", 67.0), ("electra-small-generator", 13.55), ("modernbert-base", 149.7),
])  # fmt: skip
def test_presets_have_the_published_sizes(name: str, millions: float) -> None:
    vocabulary = {"roberta-base": 50265, "modernbert-base": 50368}.get(name, 30522)
    with FakeTensorMode():
        model = build(Encoder(config=name), vocabulary=vocabulary)
        assert all(p.device.type == "cpu" for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.002)


def test_attention_without_a_fast_form_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "bellwether")
    assert build(Encoder(config=TINY)).config._attn_implementation == "sdpa"
    assert not caplog.messages
    model = build(Encoder(config={**TINY, "model_type": "deberta-v2"}))
    assert model.config._attn_implementation == "eager"
    assert caplog.messages == ["transformers' deberta-v2 has no scaled_dot_product_attention: attention is eager"]


@pytest.mark.process
def test_reading_an_architecture_imports_no_torch() -> None:
    code = "import sys; import bellwether.trainer.models.architecture; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
