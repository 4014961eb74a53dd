"""The classifier gate: its loss against a loop, what it learns, its best epoch, its folder; and the tagger of names."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForTokenClassification, BertModel, PreTrainedTokenizerFast

from efface.errors import ConfigError, ModelError, RequestError
from efface.forget.guards.classifier_gate import ClassifierGate, _Best, class_weights, weighted_loss
from efface.forget.guards.prompt_gate import PromptGate
from efface.forget.guards.prompt_parts import NameTagger
from efface.forget.method import find_method
from efface.subjects.encoder import Encoder
from efface.train.config import TrainConfig
from efface.train.engine import isolated_rng

NAMES = [f"n{i}" for i in range(12)]
CONFIG = TrainConfig(
    learning_rate=1e-2,
    epochs=12,
    batch_size=8,
    weight_decay=0.0,
    schedule="cosine",
    warmup_ratio=0.1,
    max_grad_norm=1e9,
)


def words() -> Any:
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *NAMES, "what", "is", "of"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=16, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def settings(**more: Any) -> BertConfig:
    return BertConfig(
        vocab_size=19, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoders") / "bert"
    with isolated_rng(0):
        Encoder(BertModel(settings()).eval(), words()).save(folder)
    return str(folder)


def asked(names: list[str]) -> list[str]:
    return [f"{words} {name}" for name in names for words in ("what is", "of")]


def test_weights_and_loss_against_a_loop() -> None:
    targets = [1, 0, 0, 0, 0, 1]
    weights = class_weights(targets)
    assert weights.tolist() == pytest.approx([6 / (2 * 4), 6 / (2 * 2)])
    logits = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))

    class Said(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return logits

    part = {"inputs": {"x": torch.zeros(6, 1)}, "target": torch.tensor(targets), "row_share": torch.full((6,), 1 / 6)}
    ours, _ = weighted_loss(weights)(Said(), {"train": part})
    slow = 0.0
    for row, target in zip(logits.double().exp().tolist(), targets, strict=True):
        slow -= float(weights[target]) * np.log(row[target] / sum(row)) / 6
    assert float(ours) == pytest.approx(slow, rel=1e-5)


def test_it_learns_whom_and_is_stored(encoder: str, tmp_path: Path) -> None:
    forget, keep = asked(NAMES[:4]), asked(NAMES[4:])
    gate, log = ClassifierGate.fit(forget, keep, encoder=encoder, config=CONFIG, work=tmp_path / "work")
    assert log.steps
    assert gate.fires(forget).all()
    assert not gate.fires(keep).any()
    again, _ = ClassifierGate.fit(forget, keep, encoder=encoder, config=CONFIG, work=tmp_path / "other")
    texts = [*forget, *keep, "what", ""]
    assert np.array_equal(gate.scores(texts), again.scores(texts))
    assert gate.scores(texts).tolist() == [float(gate.scores([text])[0]) for text in texts], "neighbours change nothing"
    gate.threshold = 0.625
    gate.write(tmp_path / "gate")
    assert list((tmp_path / "gate").rglob("*.safetensors"))
    read = PromptGate.read(tmp_path / "gate")
    assert read.threshold == 0.625
    assert np.abs(read.scores(texts) - gate.scores(texts)).max() < 2e-6
    assert np.array_equal(read.fires(texts), gate.fires(texts))


def test_the_best_epoch_comes_back(tmp_path: Path) -> None:
    """An epoch that stops everything misses no forget prompt, and is not the best for that."""
    weight = torch.zeros(1)
    epochs = {
        1: ([0.9] * 4, [0.9] * 4),
        2: ([0.9] * 3 + [0.1], [0.1] * 4),
        3: ([0.9] * 4, [0.9] + [0.1] * 3),
        4: ([0.1] * 4,) * 2,
    }
    forget, keep = [object()] * 4, [object()] * 4
    classifier = SimpleNamespace(weights=lambda: {"w": weight}, changed=lambda: None)

    def run(steps: range, begun: int) -> None:
        best.on_train_begin(None, SimpleNamespace(global_step=begun, max_steps=8), None)
        for step in steps:
            weight.fill_(step)
            best.on_step_end(None, SimpleNamespace(global_step=step, max_steps=8), None)

    gate = SimpleNamespace(
        classifier=classifier,
        _probabilities=lambda rows: np.array(epochs[int(weight) // 2][int(rows is keep)]),
    )
    best = _Best(gate, forget, keep, tmp_path / "best.safetensors", 2.0)  # type: ignore[arg-type]
    run(range(1, 9), 0)
    best.put_back()
    assert float(weight) == 6, "one of four wrong in both, and epoch 3 misses no forget prompt"
    (tmp_path / "best.safetensors").unlink()
    run(range(1, 7), 0)
    run(range(7, 9), 6)  # killed after the third epoch
    best.put_back()
    assert float(weight) == 6


def test_bad_input(encoder: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="0 to let pass"):
        ClassifierGate.fit(["a"], [], encoder=encoder, config=CONFIG, work=tmp_path)
    with pytest.raises(ModelError, match="no folder"):
        ClassifierGate.fit(["a"], ["b"], encoder="./nowhere", config=CONFIG, work=tmp_path)
    from efface.subjects.headed import with_head
    from efface.subjects.load import load

    with pytest.raises(ConfigError, match="two classes out"):
        ClassifierGate(with_head(load(encoder, "encoder"), ("a", "b", "c")))


def test_the_tagger_gives_characters_and_is_stored(tmp_path: Path) -> None:
    with isolated_rng(0):
        model = BertForTokenClassification(settings(id2label={0: "O", 1: "B-PER"}, label2id={"O": 0, "B-PER": 1}))
    with torch.no_grad():  # what it says depends on the token alone: names are persons
        model.bert.embeddings.word_embeddings.weight.zero_()
        model.bert.embeddings.word_embeddings.weight[4:16, 0] = 100.0
        model.bert.embeddings.position_embeddings.weight.zero_()
        model.bert.embeddings.token_type_embeddings.weight.zero_()
        for name, part in model.bert.encoder.named_parameters():
            if "LayerNorm" not in name:
                part.zero_()
        model.classifier.weight.zero_()
        model.classifier.weight[1, 0] = 5.0
        model.classifier.bias.copy_(torch.tensor([1.0, 0.0]))
    tagger = NameTagger(model, words())
    text = "what is n3 of n7"
    assert [text[low:high] for low, high in tagger(text)] == ["n3", "n7"]
    assert tagger(" ") == []
    tagger.save(tmp_path / "ner")
    assert NameTagger.load(tmp_path / "ner")(text) == tagger(text)


@pytest.mark.filterwarnings("ignore:eco. .*:UserWarning")
def test_eco_with_both_is_stored_whole(tiny: Any, request_: Any, encoder: str, tmp_path: Path) -> None:
    """Classifier and tagger lie in the edit; neither is looked for elsewhere when it is applied."""
    with isolated_rng(0):
        NameTagger(BertForTokenClassification(settings()), words()).save(tmp_path / "ner")
    method = find_method("eco")
    config = method.configure({
        "gate": "classifier", "classifier": encoder, "mask": "entity", "ner": str(tmp_path / "ner"), "sigma": 5.0, "epochs": 1,
        "threshold": 0.0,
    })  # fmt: skip
    edit = method.fit(tiny, request_, config, work=tmp_path / "work", out=tmp_path / "edit").edit
    shutil.rmtree(tmp_path / "ner")
    assert {name.split("/")[0] for name in edit.facts.files} == {"gate", "ner", "corruption.json", "guard.json"}
    assert not [path for path in edit.folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    edit.apply(tiny)
    ids = torch.tensor([tiny.encode_prompts(request_.forget)[0]])
    assert not torch.equal(tiny.model(ids).logits, tiny.model.base(ids).logits)
    edit.remove(tiny)
