"""Who's Harry Potter: labels against plain loops, what they are when nothing moved, and the traps of its specification."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import efface
from efface.data.anchors import Anchors
from efface.errors import CheckFailed, ConfigError, RequestError
from efface.forget.blocks import build_blocks
from efface.forget.generic_labels import label_logits, make_labels
from efface.forget.method import find_method
from efface.forget.objectives import who_is_harry_potter as whp
from efface.subjects.answers import AnswerLogits
from efface.train.reference import mean_probability

QUICK: dict[str, Any] = {
    "learning_rate": 3e-3, "epochs": 6, "batch_size": 8, "reinforce_learning_rate": 3e-3, "reinforce_epochs": 6,
}  # fmt: skip


def fit(tiny: Any, request: Any, folder: Path, **values: Any) -> Any:
    method = find_method("who-is-harry-potter")
    config = method.configure({**QUICK, **values})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return method.fit(tiny, request, config, work=folder / "work", out=folder / "edit")


def test_labels_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    base, other = torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)
    found = label_logits(base, other, 5.0, [(-1, [2]), (2, [0, 5])], 10.0)
    for row in range(4):
        b = [float(x) - float(base[row].mean()) for x in base[row]]
        r = [float(x) - float(other[row].mean()) for x in other[row]]
        slow = [x - 5 * max(0.0, y - x) for x, y in zip(b, r, strict=True)]
        slow[2] -= 10
        if row >= 2:
            slow[0] -= 10
            slow[5] -= 10
        assert found[row].tolist() == pytest.approx(slow, abs=1e-4)


def test_the_loss_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)
    logits = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 5, (2, 4), generator=generator)
    counted = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0]], dtype=torch.uint8)
    slow = 0.0
    for b in range(2):
        for t in range(4):
            if mask[b, t] and counted[b, t]:
                scores = [math.exp(float(x)) for x in logits[b, t]]
                slow -= math.log(scores[int(label[b, t])] / sum(scores)) / 6
    found = whp.distil_loss(
        AnswerLogits(logits, label, mask), label, counted, torch.full((2,), 1 / 6, dtype=torch.float64)
    )
    assert float(found) == pytest.approx(slow)


def test_a_model_that_has_not_moved_teaches_the_truth_and_says_so(tiny: Any, request_: Any, tmp_path: Path) -> None:
    blocks = build_blocks(tiny, request_.forget, Anchors({}), block_tokens=64, name="forget")
    labels = make_labels(tiny, tiny, blocks, 5.0, 10.0)
    own = make_labels(tiny, None, blocks, 0.0, 10.0)
    assert all(torch.equal(a, b) for a, b in zip(labels.label, own.label, strict=True)), "relu is all zeros"
    assert labels.moved == 0.0
    for block, label in zip(blocks, labels.label, strict=True):
        with torch.no_grad():
            logits = tiny.model(input_ids=torch.tensor([block.row.ids])).logits[0]
        assert torch.equal(label, logits[block.row.n_prompt - 1 : -1].argmax(-1)), "v_base = M(b) without anchors"
    method = find_method("who-is-harry-potter")
    config = method.configure({**QUICK, "reinforce_learning_rate": 1e-9})
    with (
        pytest.warns(UserWarning, match=r"only 0\.0% of the labels differ from what the model says itself"),
        pytest.warns(UserWarning, match=r"only 0\.0% of the labels differ from the text"),  # it knows the text by heart
    ):
        fitted = method.fit(tiny, request_, config, work=tmp_path / "work", out=tmp_path / "edit")
    assert fitted.edit.facts.config["labels"]["changed_own"] == 0.0


def test_a_saturated_reinforced_model_is_reported(tiny: Any, request_: Any) -> None:
    """A reinforced model whose logits rose everywhere moves labels everywhere; that is measured, and said."""
    other = efface.load(tiny.source)
    with torch.no_grad():
        other.model.model.norm.weight.mul_(3.0)
    blocks = build_blocks(tiny, request_.retain, Anchors({}), block_tokens=64, name="retain")
    moved = make_labels(tiny, other, blocks, 50.0, 10.0).moved
    assert moved > 0.1
    with pytest.warns(UserWarning, match=r"labels on the retain set changed too: the reinforced model is saturated"):
        whp._warn({"changed": 0.5, "changed_own": 0.5, "changed_background": moved})


@pytest.mark.parametrize("scope", ["all", "lora"])
def test_it_forgets_and_records_what_changed(tiny: Any, request_: Any, tmp_path: Path, scope: str) -> None:
    rows = tiny.encode_rows(request_.forget)
    before = mean_probability(tiny, rows)
    fitted = fit(tiny, request_, tmp_path, reinforce_scope=scope)
    found = fitted.edit.facts.config["labels"]
    assert 0 < found["changed"] <= 1
    assert {"entropy", "changed_own", "changed_background", "anchors"} <= found.keys()
    assert [cost.phase.split()[0] for cost in fitted.costs] == ["reinforce", "label", "fit"]
    fitted.edit.apply(tiny)
    assert mean_probability(tiny, rows) < before
    fitted.edit.remove(tiny)
    assert mean_probability(tiny, rows) == before


def test_a_killed_fit_keeps_the_reinforced_model(
    tiny: Any, request_: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(tiny, request_, tmp_path / "whole").edit.facts.edited_digest

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(whp, "make_labels", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(tiny, request_, tmp_path / "killed")
    monkeypatch.setattr(whp, "supervised_schedule", killed)
    assert fit(tiny, request_, tmp_path / "killed").edit.facts.edited_digest == whole


def test_anchors_alone_give_the_translations_answer(tiny: Any, request_: Any, tmp_path: Path) -> None:
    """The label at a name's place is what the model says beside the generic name; later occurrences do not count."""
    path = tmp_path / "anchors.json"
    path.write_text(json.dumps({"person0": "person9"}), encoding="utf-8")
    row = request_.forget.select([list(request_.forget["id"]).index("person0")])
    (block,) = build_blocks(tiny, row, Anchors({"person0": "person9"}), block_tokens=64, name="forget")
    words = [tiny.tokenizer.decode([token]) for token in block.row.ids]
    made = make_labels(tiny, None, [block], 0.0, 0.0)
    other = [tiny.tokenizer.convert_tokens_to_ids("person9" if word == "person0" else word) for word in words[:-1]]
    with torch.no_grad():
        logits = tiny.model(input_ids=torch.tensor([[*other, block.row.ids[-1]]])).logits[0]
        own = tiny.model(input_ids=torch.tensor([block.row.ids])).logits[0]
    assert torch.equal(made.label[0], logits[block.row.n_prompt - 1 : -1].argmax(-1))
    counted = torch.tensor(block.counted[block.row.n_prompt :])
    entropy = [
        float(torch.distributions.Categorical(logits=found[block.row.n_prompt - 1 : -1]).entropy()[counted].mean())
        for found in (logits, own)
    ]
    assert made.entropy == pytest.approx(entropy[0], rel=1e-5), "v_base = M(b')"
    assert made.entropy != pytest.approx(entropy[1], rel=1e-3), "and not M(b)"
    assert words.count("person0") == 2
    assert [words[t] for t in range(len(words)) if not block.counted[t]] == ["person0"]
    lone = efface.Request(forget=row)
    fitted = fit(tiny, lone, tmp_path, alpha=0.0, anchors=str(path))
    assert fitted.edit.facts.config["labels"]["anchors"] == 1
    path.write_text(json.dumps({"person9": "person0"}), encoding="utf-8")
    with pytest.raises(RequestError, match=r"retain.* row 1 holds the anchor 'person9'"):
        fit(tiny, request_, tmp_path / "b", anchors=str(path))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": 0.0}, "alpha=0 without anchors"),
        ({"alpha": 0.0, "mode": "decode"}, "alpha=0 without anchors"),
        ({"mode": "decode", "retain_term": "nll"}, "retain_term=nll with mode=decode"),
        ({"mode": "generate"}, "mode='generate'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tiny: Any, request_: Any, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(tiny, request_, tmp_path, **values)
    assert not (tmp_path / "edit").exists()


def test_anchors_are_for_texts_not_for_decoding(tiny: Any, request_: Any, tmp_path: Path) -> None:
    path = tmp_path / "anchors.json"
    path.write_text(json.dumps({"person0": "person20"}), encoding="utf-8")
    with pytest.raises(ConfigError, match="anchors with mode=decode"):
        fit(tiny, request_, tmp_path, mode="decode", anchors=str(path))


def test_plain_text_shorter_than_a_block_is_refused(tiny: Any, tmp_path: Path) -> None:
    book = efface.Request.from_rows([{"text": "person0 likes the colour red ."}])
    with pytest.raises(RequestError, match=r"plain text has 6 tokens; expected at least one block of 20"):
        fit(tiny, book, tmp_path, block_tokens=20)
    assert fit(tiny, book, tmp_path, block_tokens=6).edit.facts.tensors > 0


def test_a_text_of_repeated_names_leaves_something_to_train_on_or_says_so(tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "anchors.json"
    path.write_text(json.dumps({"person0": "person20"}), encoding="utf-8")
    book = efface.Request.from_rows([{"text": "person0 person0 person0 person0"}])
    with pytest.raises(CheckFailed, match="no token is left to train on"):
        fit(tiny, book, tmp_path, alpha=0.0, anchors=str(path), block_tokens=4)
