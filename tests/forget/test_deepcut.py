"""DeepCUT's reconstruction: a step with its views against loops, the clipped term, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from efface.data.request import Request
from efface.errors import ConfigError
from efface.forget.objectives import deepcut
from efface.forget.objectives.deepcut import METHOD, DeepcutConfig, coincide, dropping
from efface.lab.classified import labelled
from efface.subjects.factory import FactoryForm
from efface.subjects.predictor import Predictor
from efface.train.engine import isolated_rng

K, SIZE = 4, 8
WORDS = "the game team won score market shares price fell bank army troops city chip phone data".split()


def network(dropout: float = 0.2, classes: int = K, hidden: tuple[int, int] = (24, 16)) -> Predictor:
    form = FactoryForm(
        factory="efface.subjects.networks:mlp", labels=tuple(str(i) for i in range(classes)),
        arguments={"inputs": SIZE, "outputs": classes, "hidden": list(hidden), "dropout": dropout},
    )  # fmt: skip
    with isolated_rng(0):
        return Predictor(form.build().eval(), form=form)


def rows(n: int, seed: int, classes: int = K) -> Dataset:
    values = np.random.default_rng(seed).normal(size=(n, SIZE))
    data = labelled(values, np.arange(n) % classes, [f"{seed}-{i}" for i in range(n)], [str(i) for i in range(classes)])
    return data


def request(classes: int = K) -> Request:
    return Request(forget=rows(8, 0, classes), retain=rows(48, 1, classes))


def fit(model: Predictor, asked: Request, folder: Path, **values: Any) -> Any:
    config = METHOD.configure({"epochs": 1, "batch_size": 4, "learning_rate": 1e-3, **values})
    return METHOD.fit(model, asked, config, work=folder / "work", out=folder / "edit")


def parts(model: Predictor, n: int = 5, streams: int = 2) -> dict[str, Any]:
    data = model.encode_rows(rows(40, 2))
    found: dict[str, Any] = {"forget": model.batch(data[:n])}
    found["forget"] |= {"gone": torch.zeros(n, dtype=torch.bool), "row_share": torch.full((n,), 1 / n)}
    for k in range(streams):
        found[f"retain{k or ''}"] = model.batch(data[10 + n * k : 10 + n * (k + 1)])
        found[f"retain{k or ''}"] |= {"token_share": torch.full((n,), 1 / n)}
    return found


@pytest.mark.parametrize("denominator", ["all", "same_class"])
def test_a_step_by_the_equations(denominator: Any) -> None:
    """L = CE(R) + gamma L_f over V views of 5 rows and 10 retained ones, all from the passes of one step."""
    model = network()
    model.model.train()
    config = DeepcutConfig(views=3, denominator=denominator, tau=0.4, forget_weight=2.0, forget_norm=1e9)
    batch = parts(model)
    with isolated_rng(7):
        total, numbers = METHOD.step(model, model.model, batch, config)
    with isolated_rng(7), torch.no_grad():
        views, _ = model.forward(model.model, {"x": batch["forget"]["inputs"]["x"].repeat(3, 1)})
        kept = [model.forward(model.model, batch[name]["inputs"]) for name in ("retain", "retain1")]
    ctx, said = torch.cat([one[0] for one in kept]), torch.cat([one[1] for one in kept])
    y = batch["forget"]["target"].repeat(3).tolist()
    y_r = torch.cat([batch["retain"]["target"], batch["retain1"]["target"]]).tolist()
    losses = []
    for i in range(15):
        s = [float(views[i] @ ctx[j] / views[i].norm() / ctx[j].norm()) / 0.4 for j in range(10)]
        away = [j for j in range(10) if y_r[j] != y[i]]
        below = sum(np.exp(s[k]) for k in range(10) if denominator == "all" or y_r[k] == y[i])
        losses.append(-np.mean([np.log(np.exp(s[j]) / below) for j in away]))
    ce = -np.mean([float(said[j].log_softmax(-1)[y_r[j]]) for j in range(10)])
    assert not torch.allclose(views[:5], views[5:10])
    assert numbers["forget"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert numbers["retain"] == pytest.approx(ce, rel=1e-4)
    assert float(total.detach()) == pytest.approx(2 * np.mean(losses) + ce, rel=1e-4)


def test_only_the_contrastive_gradient_is_clipped() -> None:
    def gradient(**values: Any) -> tuple[dict[str, Tensor], float]:
        model = network()
        model.model.train()
        with isolated_rng(3):
            config = DeepcutConfig(**{"views": 2, "forget_norm": 1e9, "forget_weight": 4.0, **values})
            total, numbers = METHOD.step(model, model.model, parts(model), config)
        total.backward()
        return {name: p.grad for name, p in model.model.named_parameters() if p.grad is not None}, numbers["weight"]

    held, none = gradient(forget_weight=0.0)
    whole, weight = gradient()
    short, less = gradient(forget_norm=1e-2)
    assert (none, weight) == (0.0, 4.0)
    term = {name: whole[name] - held[name] for name in whole}
    length = float(torch.stack([part.norm() for part in term.values()]).norm())
    assert length > 1e-2
    assert less == pytest.approx(4.0 * 1e-2 / length, rel=1e-4)
    for name, part in term.items():
        assert torch.allclose(short[name], held[name] + part * (1e-2 / length), atol=1e-6)


def test_views_need_active_dropout(tmp_path: Path) -> None:
    """With a rate of 0, or in evaluation mode, all views coincide and add nothing."""
    dead = network(dropout=0.0)
    digest = dead.digest
    with pytest.raises(ConfigError, match="without active dropout"):
        fit(dead, request(), tmp_path / "a")
    dead.changed()
    assert dead.digest == digest
    assert fit(dead, request(), tmp_path / "b", views=1).edit.facts.tensors > 0
    resting = network(dropout=0.3)
    with pytest.raises(ConfigError, match="without active dropout"):
        METHOD.embedded(resting, resting.model.eval(), parts(resting)["forget"], DeepcutConfig())
    assert not dropping(resting.model)
    assert dropping(resting.model.train())


def test_views_coincide_but_for_rounding() -> None:
    one = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    assert coincide(torch.stack([one, one * (1 + 1e-7)]))
    other = one.clone()
    other[2, 3] = 0
    assert not coincide(torch.stack([one, other]))


class Functional(nn.Module):
    """Dropout without a layer of that kind."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(SIZE, 12), nn.Linear(12, K)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(nn.functional.dropout(self.body(x).tanh(), 0.3, training=self.training))
        return found


def test_dropout_without_a_layer_is_seen() -> None:
    model = Predictor(Functional().train(), form=network().form)
    features, y, gone = METHOD.embedded(model, model.model, parts(model)["forget"], DeepcutConfig(views=4))
    assert features.shape == (20, 12)
    assert y.tolist() == [0, 1, 2, 3, 0] * 4
    assert len(gone) == 20


def test_two_classes_warn(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="label flip"):
        fit(network(classes=2), request(2), tmp_path)


def test_a_frozen_encoder_is_refused(tmp_path: Path) -> None:
    model = Predictor(nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(SIZE, K)), form=network().form)
    with pytest.raises(ConfigError, match="cannot move"):
        fit(model, request(), tmp_path)


def test_rows_of_a_batch_and_seeds(tmp_path: Path) -> None:
    """8 forget rows by 4 and 12 retained ones beside them: with all classes three times, no anchor is left out."""
    model = network()
    made = [fit(model, request(), tmp_path / str(i), retain_ratio=3, seed=seed) for i, seed in enumerate((0, 0, 1))]
    digests = [one.edit.facts.edited_digest for one in made]
    assert digests[0] == digests[1] != digests[2]
    assert len(made[0].log) == 2
    assert all(row["skipped"] == pytest.approx(0, abs=1e-6) for row in made[0].log)
    assert {"forget", "retain", "weight"} <= made[0].log[0].keys(), "the two losses are reported apart"


def test_wrong_labels_are_forgotten(tmp_path: Path) -> None:
    """A network that remembers eight wrong labels says the right ones afterwards more often."""
    from efface.learn.recipes.classifier import ClassifierConfig
    from efface.learn.recipes.classifier import fit as learn

    rng = np.random.default_rng(5)
    centres, truth = 1.6 * np.random.default_rng(6).normal(size=(K, SIZE)), np.arange(96) % K
    values = centres[truth] + rng.normal(size=(96, SIZE))
    given = np.where(np.arange(96) < 8, (truth + 1) % K, truth)
    data = labelled(values, given, [str(i) for i in range(96)], [str(i) for i in range(K)])
    model = network(dropout=0.05, hidden=(64, 32))
    config = ClassifierConfig(optimizer="adam", learning_rate=1e-2, weight_decay=0.0, epochs=50, batch_size=48)
    learn(model, data, config, work=tmp_path / "learn")
    asked = Request(forget=data.select(range(8)), retain=data.select(range(8, 96)))

    def says(wanted: Any) -> float:
        return float(np.mean(model.read(model.encode_rows(data))[1].argmax(-1).numpy()[:8] == wanted[:8]))

    assert says(given) >= 0.75
    edit = fit(
        model, asked, tmp_path, epochs=20, batch_size=8, forget_weight=10.0, learning_rate=1e-2, stop="none"
    ).edit
    edit.apply(model)
    assert says(given) <= 0.25
    assert says(truth) >= 0.5


def bert() -> Predictor:
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    names = ["[PAD]", "[CLS]", "[UNK]", "[SEP]", *WORDS]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        model_max_length=12, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    config = BertConfig(
        vocab_size=len(names), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, num_labels=K,
    )  # fmt: skip
    with isolated_rng(0):
        return Predictor(BertForSequenceClassification(config).eval(), tokenizer)


def texts(n: int, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    found = [" ".join(rng.choice(WORDS, size=int(rng.integers(1, 10)))) + f" {seed} {i}" for i in range(n)]
    data = Dataset.from_dict(
        {"id": [f"{seed}-{i}" for i in range(n)], "text": found, "label": [i % K for i in range(n)]}
    )
    return data.cast_column("label", ClassLabel(names=[f"LABEL_{i}" for i in range(K)]))


def test_texts_of_other_lengths_and_a_transformer(tmp_path: Path) -> None:
    model = bert()
    digest = model.digest
    asked = Request(forget=texts(6, 0), retain=texts(24, 1))
    made = fit(model, asked, tmp_path, batch_size=3)
    model.changed()
    assert model.digest == digest
    made.edit.apply(model)
    assert model.digest == made.edit.facts.edited_digest
    made.edit.remove(model)
    assert model.digest == digest
    rows = model.encode_rows(asked.forget)
    alone = torch.cat([model.read([row])[0] for row in rows])
    assert torch.allclose(model.read(rows)[0], alone, atol=1e-5), "padding has no say in the features"


def test_it_says_that_it_is_a_reconstruction() -> None:
    card = METHOD.card
    assert "reconstruction" in card.summary.lower()
    assert card.experimental
    assert "reconstruct" in (deepcut.__doc__ or "").splitlines()[0]
    with pytest.raises(ConfigError, match="forget_weight"):
        METHOD.configure({"gamma": 10.0})
