"""DEXML: data, losses through the module, shortlists, sampling, search and its scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

import efface
from efface.data.multi_label import label_queries, read_labels, read_multi_label
from efface.errors import ConfigError, InputError, ModelError, RequestError
from efface.learn.label_training import LabelledConfig, LabelModule, fit_labels
from efface.learn.module import Steps
from efface.learn.recipes.dexml import evaluate
from efface.learn.retrieval_scores import propensities, retrieval_scores, search
from efface.learn.run import learn
from efface.run.files import read_json

LABELS = ["red things", "blue things", "fast animals", "slow animals", "tools"]
RELEVANT = [[0, 2], [1, 3], [2], [0, 1, 4], [4], [3, 0], [2, 1], [4, 3]]
SMALL: dict[str, Any] = {
    "start": {"width": 32, "depth": 1, "heads": 2, "context": 12}, "batch_size": 8, "epochs": 40, "learning_rate": 3e-3,
}  # fmt: skip


def data(copies: int = 2) -> Dataset:
    words = ["red", "blue", "fast", "slow", "hammer"]
    texts = [" and ".join(words[label] for label in line) for line in RELEVANT] * copies
    return Dataset.from_dict(
        {"text": texts, "labels": [[LABELS[label] for label in line] for line in RELEVANT] * copies}
    )


class Side:
    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        found: Tensor = self.module(inputs["x"])
        return found


def module(**config: Any) -> LabelModule:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(6, 4), nn.Linear(5, 4)])
    x, y = torch.randn(8, 6), torch.randn(5, 5)

    def queries(rows: Any) -> dict[str, Tensor]:
        return {"x": x[list(rows)]}

    settings = LabelledConfig(**({"temperature": 0.2} | config))
    return LabelModule(model, (Side(model[0]), Side(model[1])), queries, {"x": y}, RELEVANT, settings, 2.0)


def batch(of: LabelModule, rows: list[int]) -> dict[str, Any]:
    return {"rows": torch.tensor(rows), "inputs": of.queries(rows)}


@pytest.mark.parametrize("loss", ["softmax", "softmax-mean", "decoupled", "bce", "soft-top-k"])
def test_every_loss_finds_the_labels(loss: str, tmp_path: Path) -> None:
    model = learn("dexml", data(), tmp_path / "model", loss=loss, temperature=0.1, k=2, sample=False, **SMALL)
    assert efface.load(tmp_path / "model").digest == model.digest
    texts = read_json(tmp_path / "model" / "labels.json")["texts"]
    assert texts == sorted(LABELS)
    right = [[texts.index(label) for label in line] for line in data()["labels"]]
    assert evaluate(model, list(data()["text"]), right, texts, at=(1,))["r-precision"] > 0.9


@pytest.mark.parametrize("loss", ["decoupled", "soft-top-k"])
def test_chunks_of_labels_and_queries_change_nothing(loss: str) -> None:
    found = []
    for chunks in ({"label_chunk": None}, {"label_chunk": 2, "chunk": 3}):
        one = module(loss=loss, k=2, **chunks)
        value, _ = one(batch(one, [0, 3, 5, 1, 7]))
        value.backward()
        found.append([value.detach(), *(p.grad for p in one.parameters())])
    torch.testing.assert_close(found[0], found[1])


def test_sampling_pulls_one_positive_and_pushes_none_of_the_others() -> None:
    one = module()
    which, own, chosen = one._positives(torch.tensor([3, 0]), torch.Generator().manual_seed(0))
    assert which.tolist() == [0, 0, 0, 1, 1]
    assert own.tolist() == [0, 1, 4, 0, 2]
    assert [int(chosen[which == i].sum()) for i in (0, 1)] == [1, 1]
    value, numbers = one(batch(one, [3, 0]))
    assert numbers["positives"] == 1.0
    label = nn.functional.normalize(one.towers[1].features(one.labels), dim=1)  # type: ignore[attr-defined]
    q = nn.functional.normalize(one.towers[0].features(one.queries([3, 0])), dim=1)  # type: ignore[attr-defined]
    s = (q @ label.T / 0.2).detach()
    generator = torch.Generator().manual_seed(int(one.done) + 1)
    picked = one._positives(torch.tensor([3, 0]), generator)[2]
    slow = 0.0
    for row, line in enumerate(([0, 1, 4], [0, 2])):
        own_label = next(label for label, taken in zip(line, picked[which == row].tolist(), strict=True) if taken)
        against = [own_label, *(other for other in range(5) if other not in line)]
        slow += float(s[row, against].logsumexp(0) - s[row, own_label]) / 2
    assert float(value.detach()) == pytest.approx(slow, rel=1e-5)


def test_a_query_with_more_positives_than_k() -> None:
    """Trap: p sums to k. Without sampling k grows to n_q, with it only k are pulled."""
    for sample, expected in ((False, 3.0), (True, 2.0)):
        one = module(loss="soft-top-k", k=2, sample=sample)
        value, numbers = one(batch(one, [3]))
        assert math.isfinite(float(value.detach()))
        assert numbers["positives"] == expected
    with pytest.raises(InputError, match="k=5 of 5 labels"):
        module(loss="soft-top-k", k=5)


def test_shortlists_hold_the_hardest_labels_that_are_not_the_querys_own() -> None:
    one = module(negatives="shortlist", shortlist=2, hard_negatives=1, hard_start=1, refresh=2)
    assert not bool(one.ready)
    one.refresh()
    q, labels = (
        nn.functional.normalize(one.towers[side].features(x), dim=1)  # type: ignore[attr-defined]
        for side, x in ((0, one.queries(range(8))), (1, one.labels))
    )
    for row, line in enumerate(RELEVANT):
        order = [label for label in (q @ labels.T)[row].argsort(descending=True).tolist() if label not in line]
        assert one.shortlist[row].tolist() == order[:2]
    names = one._union(torch.tensor([2]), torch.tensor([2]), torch.Generator().manual_seed(0)).tolist()
    assert len(names) == 2
    assert set(names) - {2} <= set(one.shortlist[2].tolist())
    value, numbers = one(batch(one, [2]))
    assert numbers["labels"] == 2.0
    assert math.isfinite(float(value.detach()))


def test_shortlists_are_made_when_they_are_due() -> None:
    one = module(negatives="shortlist", shortlist=2, hard_start=3, refresh=2)  # two steps an epoch
    due = []
    for step in range(16):
        one.ready.fill_(False)
        one.after_step()
        if bool(one.ready):
            due.append(step + 1)
        one.done += 1
    assert due == [6, 10, 14]
    two = nn.ModuleList([nn.Linear(6, 4), nn.Linear(5, 4)])
    sides, config = (Side(two[0]), Side(two[1])), LabelledConfig(negatives="shortlist")
    with pytest.raises(ConfigError, match="shortlist"):
        LabelModule(
            two, sides, lambda rows: {"x": torch.zeros(len(rows), 6)}, {"x": torch.zeros(2, 5)}, [[0, 1]], config, 1.0
        )


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In shortlist mode, with dropout of the model off and one positive drawn at each step."""
    from safetensors.torch import load_file

    config = SMALL | {"epochs": 5, "negatives": "shortlist", "shortlist": 2, "hard_negatives": 1, "hard_start": 1,
                      "refresh": 1, "checkpoint_seconds": 1e-9}  # fmt: skip
    learn("dexml", data(), tmp_path / "whole", **config)

    class Killed(Exception):
        pass

    original = Steps.on_step_end

    def killed(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        original(self, args, state, control, **rest)
        if state.global_step == 5:
            raise Killed

    monkeypatch.setattr(Steps, "on_step_end", killed)
    with pytest.raises(Killed):
        learn("dexml", data(), tmp_path / "model", **config)
    monkeypatch.setattr(Steps, "on_step_end", original)
    learn("dexml", data(), tmp_path / "model", **config)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "model"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_towers_stay_in_evaluation_mode_unless_dropout_is_asked_for() -> None:
    assert not module().train().backbone.training
    assert module(dropout=True).train().backbone.training


def test_labels_are_merged_dropped_and_refused(tmp_path: Path) -> None:
    found = label_queries([["b", "a ", "b"], [], None, "a"])
    assert (found.texts, found.relevant, found.rows) == (["a", "b"], [[0, 1], [0]], [0, 3])
    assert (found.dropped, found.merged) == (2, 1), "one text with and without a blank"
    merged = label_queries([[1, 2], [3]], {"1": "dog", "2": "dog", "3": "cat", "4": "fox"})
    assert (merged.texts, merged.relevant, merged.merged) == (["cat", "dog", "fox"], [[1], [0]], 1)
    with pytest.raises(RequestError, match="'9' has no text"):
        label_queries([[9]], {"1": "dog", "2": "cat"})
    with pytest.raises(RequestError, match="some text"):
        label_queries([["1"]], {"1": " ", "2": "cat"})
    with pytest.raises(RequestError, match="two or more"):
        label_queries([["a"]])
    file = tmp_path / "labels.jsonl"
    file.write_text('{"id": 1, "text": "dog"}\n{"id": "2", "text": "cat"}\n')
    assert read_labels(file) == {"1": "dog", "2": "cat"}
    with pytest.raises(RequestError, match="label file"):
        read_labels(tmp_path / "none.json")


def test_a_file_of_rows_and_label_ids(tmp_path: Path) -> None:
    import json

    rows, names = tmp_path / "rows.jsonl", tmp_path / "labels.json"
    rows.write_text("".join(
        json.dumps({"text": row["text"], "labels": [LABELS.index(label) for label in row["labels"]]}) + "\n" for row in data()
    ) + '{"text": "nothing", "labels": []}\n')  # fmt: skip
    names.write_text(json.dumps(dict(enumerate([*LABELS, "tools"]))))
    learn("dexml", rows, tmp_path / "model", label_file=str(names), **(SMALL | {"epochs": 1}))
    facts = read_json(tmp_path / "model" / "learn.json")
    assert (facts["rows"], facts["labels"], facts["queries_without_labels"], facts["merged_labels"]) == (16, 5, 1, 1)
    with pytest.raises(RequestError, match="labels"):
        read_multi_label(Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(RequestError, match="JSONL"):
        read_multi_label(tmp_path / "rows.csv")
    arrays = Dataset.from_dict({"id": ["0", "1", "2"], "features": [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]})
    encoder = learn("nt-xent", arrays, tmp_path / "arrays", epochs=1, batch_size=3, evaluations=0)
    with pytest.raises(ModelError, match="labels are texts"):
        learn("dexml", data(), tmp_path / "other", model=encoder, **SMALL)


def test_pictures_as_queries_of_a_dual_encoder(tmp_path: Path) -> None:
    from efface.lab.digit_learning import digit_pixels, pictures

    pixels, digits = digit_pixels()
    known = pictures(pixels[:20], digits[:20], range(20))
    rows = known.remove_columns("label").add_column("labels", [[f"digit {digit}"] for digit in digits[:20]])
    size = {"width": 16, "depth": 1, "heads": 2, "image_size": 8, "patch": 4, "context": 6}
    model = learn("dexml", rows, tmp_path / "model", **(SMALL | {"start": size, "epochs": 2}))
    assert model.kind == "dual-encoder"
    assert efface.load(tmp_path / "model").digest == model.digest


def test_search_is_exact_over_chunks() -> None:
    generator = torch.Generator().manual_seed(0)
    q, labels = torch.randn(6, 4, generator=generator), torch.randn(23, 4, generator=generator)
    scores, places = search(q, labels, 7, chunk=5)
    best = (q @ labels.T).topk(7, dim=1)
    assert torch.equal(places, best.indices)
    torch.testing.assert_close(scores, best.values)
    with pytest.raises(InputError, match="best 24 of 23"):
        search(q, labels, 24)


def test_scores_by_hand() -> None:
    found = torch.tensor([[4, 0, 2, 1], [3, 1, 0, 2], [0, 1, 2, 3]])
    relevant = [[0, 4], [2], []]
    got = retrieval_scores(found, relevant, at=(1, 3), propensity=torch.tensor([0.5, 1.0, 0.25, 1.0, 1.0]))
    assert got["p@1"] == pytest.approx(1 / 2)
    assert got["p@3"] == pytest.approx((2 / 3 + 0) / 2)
    assert got["recall@3"] == pytest.approx((1 + 0) / 2)
    assert got["ndcg@3"] == pytest.approx(1 / 2)
    assert got["r-precision"] == pytest.approx((1 + 0) / 2)
    assert got["psp@1"] == pytest.approx(1 / (2 + 4)), "1/p of what was found over the most that could be"
    assert got["psp@3"] == pytest.approx((1 + 2) / (1 + 2 + 4))
    assert got["left_out"] == 1
    with pytest.raises(InputError, match="2 labels found"):
        retrieval_scores(found[:, :2], relevant, at=(3,))


def test_few_labels_cap_precision_and_not_r_precision() -> None:
    """Trap: P@k of a query with one label is at most 1/k."""
    got = retrieval_scores(torch.tensor([[2, 0, 1]]), [[2]], at=(3,))
    assert got["p@3"] == pytest.approx(1 / 3)
    assert got["r-precision"] == 1.0


def test_propensities_grow_with_counts() -> None:
    p = propensities(torch.tensor([0, 1, 10, 1000]), 10_000)
    assert bool((p.diff() > 0).all())
    assert bool(((p > 0) & (p <= 1)).all())
    c = (math.log(10_000) - 1) * 2.5**0.55
    assert float(p[2]) == pytest.approx(1 / (1 + c * math.exp(-0.55 * math.log(11.5))))


def test_mosaics_are_of_the_seed_and_their_labels_of_their_slots() -> None:
    from efface.lab.mosaics import DIGITS, SLOTS, mosaics

    known, unseen = mosaics(0)
    assert known.pictures.shape == (1000, 1, 16, 24)
    assert len(unseen.relevant) == 1500
    assert torch.equal(known.pictures, mosaics.__wrapped__(0)[0].pictures)
    for line in known.relevant:
        assert 1 <= len(line) <= SLOTS
        assert len({label // DIGITS for label in line}) == len(line), "one digit a slot"
    counts = torch.bincount(torch.tensor([label % DIGITS for line in known.relevant for label in line]))
    assert counts[0] > 10 * counts[9], "long-tailed"
    full = [i for i, line in enumerate(known.relevant) if 0 not in {label // DIGITS for label in line}]
    assert abs(float(known.pictures[full, 0, :8, :8].mean())) < 0.02, "an empty slot holds noise alone"


def test_fit_labels_runs_on_modules_of_any_kind(tmp_path: Path) -> None:
    one = module()
    done = fit_labels(
        one.backbone, one.towers, one.queries, one.labels, RELEVANT,  # type: ignore[attr-defined]
        LabelledConfig(epochs=30, batch_size=4, learning_rate=0.05, temperature=0.2), work=tmp_path / "work",
    )  # fmt: skip
    assert done.values[-1]["loss"] < done.values[0]["loss"]
