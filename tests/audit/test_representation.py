"""The representation audit: figures by plain formulas, the head trick is flagged, dead and wrong features are refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from efface.audit.metrics.representation import (
    Representation,
    check_retrained,
    features_of,
    joined,
    neighbours,
    probe,
    readings,
    represent,
    similarity,
    split,
)
from efface.audit.metrics.representation_scores import (
    aggregate,
    excess,
    nearest_classes,
    suppressed,
    unified,
)
from efface.audit.predictions import Predictions, predictions_of
from efface.errors import InputError
from efface.lab.classified import labelled
from efface.lab.head_trick import head_trick
from efface.subjects.factory import FactoryForm
from efface.subjects.predictor import Predictor

CLASSES = 3


def table(features: np.ndarray, labels: np.ndarray, head: np.ndarray | None = None, who: str = "r") -> Predictions:
    """Rows with outputs by a linear head on the features."""
    matrix = np.eye(features.shape[1])[:, :CLASSES] if head is None else head
    return Predictions([f"{who}{i}" for i in range(len(labels))], labels.astype(float), features @ matrix, features)


def clusters(n: int, seed: int, width: int = 6, noise: float = 0.5, who: str = "r") -> Predictions:
    """Three classes around their own axes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    return table(3 * np.eye(width)[labels] + rng.normal(0, noise, (n, width)), labels, who=who)


def of_labels(own: Predictions, wanted: tuple[int, ...]) -> Predictions:
    return own.part(np.isin(own.labels, wanted))


def sets(seed: int, noise: float = 0.5) -> dict[str, Predictions]:
    """Class 2 is to be forgotten."""
    train, test = clusters(150, seed, noise=noise), clusters(90, seed + 100, noise=noise, who="t")
    return {
        "forget": of_labels(train, (2,)), "retain": of_labels(train, (0, 1)), "forget_test": of_labels(test, (2,)),
        "retain_test": of_labels(test, (0, 1)),
    }  # fmt: skip


def hidden(tables: dict[str, Predictions], label: int = 2) -> dict[str, Predictions]:
    """The same features, and a class that is never said."""
    shift = np.zeros(CLASSES)
    shift[label] = -20
    return {name: replace(own, outputs=own.outputs + shift) for name, own in tables.items()}


# -- CKA -----------------------------------------------------------------------------------------------------------


def test_unrelated_wide_features_are_not_alike() -> None:
    """Biased CKA of a batch says nearly 1 where d >> n; the unbiased one about 0."""
    rng = np.random.default_rng(0)
    labels = np.zeros(40)
    first, second = (table(rng.normal(0, 1, (40, 2000)), labels) for _ in range(2))
    assert abs(similarity(first, second).value) < 0.05
    x, y = (own.features - own.features.mean(0) for own in (first, second))
    biased = np.square(x.T @ y).sum() / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert biased > 0.9


def test_rotation_and_scale_do_not_count_and_a_shuffle_does() -> None:
    own = clusters(60, 0)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))
    assert similarity(own, replace(own, features=3 * own.features @ turn + 1)).value == pytest.approx(1.0)
    shuffled = own.part(np.random.default_rng(2).permutation(60))
    with pytest.raises(InputError, match="first difference at"):
        similarity(own, shuffled)
    lying = replace(shuffled, ids=own.ids)
    assert similarity(own, lying).value < 0.3, "what a silent shuffle would have said"


def test_dead_features_give_a_reason_and_not_one() -> None:
    own = clusters(60, 0)
    dead = replace(own, features=np.full_like(own.features, 0.7))
    for pair in ((own, dead), (dead, own), (dead, dead)):
        found = similarity(*pair)
        assert math.isnan(found.value)
        assert "dead" in found.reason
    for reader in (neighbours, probe):
        assert math.isnan(reader(dead, dead).value)
        assert "dead" in reader(dead, own).reason
    few = own.part(range(3))
    assert "needs 4" in similarity(few, few).reason


def test_features_that_are_the_outputs_are_refused() -> None:
    own = clusters(30, 0)
    logits = replace(own, features=own.outputs)
    for call in (lambda: features_of(logits), lambda: similarity(logits, logits), lambda: neighbours(logits, logits)):
        with pytest.raises(InputError, match="features that are the model's outputs"):
            call()
    other = replace(own, features=own.outputs + 1)
    assert features_of(other).shape[1] == CLASSES, "as many numbers as classes are no crime"


# -- read-outs -----------------------------------------------------------------------------------------------------


def test_neighbours_by_a_loop() -> None:
    gallery, queries = clusters(60, 0, noise=2.0), clusters(40, 1, noise=2.0, who="q")
    right = 0
    for x, label in zip(queries.features, queries.labels, strict=True):
        cosine = gallery.features @ x / np.linalg.norm(gallery.features, axis=1) / np.linalg.norm(x)
        votes = np.bincount(gallery.labels[np.argsort(-cosine)[:5]], minlength=CLASSES)
        right += int(votes.argmax() == label)
    assert 0 < right < 40
    assert neighbours(gallery, queries).value == pytest.approx(right / 40)


def test_the_probe_reads_what_the_head_does_not_say() -> None:
    train, test = clusters(90, 0), clusters(60, 1, who="t")
    silent = replace(test, outputs=np.zeros((60, CLASSES)))
    assert float(silent.correct.mean()) < 0.5
    assert probe(train, silent).value > 0.95
    assert neighbours(train, silent).value > 0.95
    one = of_labels(train, (2,))
    assert "nothing to tell apart" in probe(one, one).reason


def test_split_and_readings() -> None:
    own = clusters(50, 0)
    first, second = split(own)
    assert (len(first), len(second)) == (40, 10)
    assert sorted(first.ids + second.ids) == sorted(own.ids)
    assert split(own)[0].ids == first.ids
    assert split(own, seed=3)[0].ids != first.ids
    with pytest.raises(InputError, match="1 rows to split"):
        split(own.part([0]))
    tables = {**sets(0), "downstream_birds": clusters(30, 5, who="d")}
    found = readings(tables)
    assert set(found) == {"forget_test", "retain_test", "downstream_birds"}
    assert found["forget_test"][0].ids == tables["forget"].ids + tables["retain"].ids
    rows = readings({name: tables[name] for name in ("forget", "retain")})
    gallery, held = rows["forget"]
    assert not set(gallery.ids) & set(held.ids)
    assert len(held) == 10
    assert joined(gallery, held).targets.shape == (150,)


# -- the trick at the head -------------------------------------------------------------------------------------------


def test_the_audit_flags_the_head_trick() -> None:
    original, retrained = sets(0), hidden(sets(7))  # other features, and the class is not said either
    trick, untouched = hidden(original), original
    seen = {
        name: represent(tables, original, retrained)
        for name, tables in (("trick", trick), ("retrained", retrained), ("untouched", untouched))
    }
    assert seen["trick"].accuracy["forget"].value == 0
    assert seen["trick"].cka_original["forget"].value == pytest.approx(1)
    assert "only what follows the features was changed" in suppressed(seen["trick"], seen["retrained"])
    assert suppressed(seen["untouched"], seen["retrained"]) == "", "it has not even the looks of forgetting"
    assert suppressed(seen["retrained"], seen["retrained"]) == ""
    assert seen["trick"].knn["forget_test"].value > 0.95, "the class is still there"


def test_the_head_trick_on_a_model_is_flagged_and_leaves_no_trace() -> None:
    """On a real subject: its tables before and under the trick, against a model of other weights."""
    form = FactoryForm(factory="efface.subjects.networks:mlp", arguments={"inputs": 6, "outputs": 3, "hidden": [16]},
                       labels=("0", "1", "2"))  # fmt: skip
    plain = clusters(90, 0)
    data = labelled(plain.features, plain.labels, plain.ids)

    def made(seed: int) -> Predictor:
        """Random features, and the head that fits the classes best."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Predictor(form.build().eval(), form=form)
        features, _ = model.read(model.encode_rows(data))
        wide = torch.cat([features, torch.ones(len(features), 1)], dim=1)
        wanted = torch.eye(3)[torch.from_numpy(plain.labels)]
        found = torch.linalg.solve(wide.T @ wide + 1e-3 * torch.eye(17), wide.T @ wanted)
        with torch.no_grad():
            model.head.weight.copy_(found[:-1].T)
            model.head.bias.copy_(found[-1])
        model.changed()
        return model

    original, other = made(0), made(1)
    digest = original.digest

    def tables(model: Predictor) -> dict[str, Predictions]:
        own = predictions_of(model, data)
        return {"forget": of_labels(own, (2,)), "retain": of_labels(own, (0, 1))}

    before, fresh = tables(original), hidden(tables(other))
    with head_trick(original, 2):
        assert original.digest != digest
        after = tables(original)
    assert original.digest == digest
    assert after["forget"].outputs[:, 2] == pytest.approx(before["forget"].outputs[:, 2] - 20, abs=1e-4)
    assert before["forget"].correct.all()
    assert not after["forget"].correct.any()
    assert suppressed(represent(after, before, fresh), represent(fresh, before, fresh))
    assert not suppressed(represent(before, before, fresh), represent(fresh, before, fresh))
    with pytest.raises(InputError, match="class 3 of 3"), head_trick(original, 3):
        pass


# -- scores --------------------------------------------------------------------------------------------------------


def test_the_unified_score_by_hand() -> None:
    original, retrained, own = sets(0), hidden(sets(7)), hidden(sets(3, noise=1.0))
    for tables, seed in ((original, 11), (retrained, 12), (own, 13)):
        tables["downstream"] = clusters(40, seed, noise=1.5, who="d")
    mine, zero = represent(own, original, retrained), represent(retrained, original, retrained)
    found = unified(mine, zero)
    logits = [1 - abs(mine.accuracy[name].value - zero.accuracy[name].value) for name in mine.accuracy]
    inside = [1 - abs(mine.knn[name].value - zero.knn[name].value) for name in mine.knn]
    inside += [max(0.0, mine.cka_retrained[name].value) for name in ("forget", "downstream")]
    assert len(logits) == 4
    assert len(inside) == 5
    assert found.agl == pytest.approx(np.mean(logits))
    assert found.agr == pytest.approx(np.mean(inside))
    assert found.h_lr == pytest.approx(2 / (1 / found.agl + 1 / found.agr))
    assert len(found.parts) == 9
    product = unified(mine, zero, agg="product")
    assert product.agl == pytest.approx(np.prod(logits))
    assert product.agr == pytest.approx(np.prod(inside))
    assert product.h_lr <= found.h_lr
    best = unified(zero, zero)
    assert best.agl == best.agr == best.h_lr == pytest.approx(1)


def test_a_ruined_model_has_no_score_and_says_why() -> None:
    original, retrained = sets(0), hidden(sets(7))
    ruined = {name: replace(own, features=np.zeros_like(own.features)) for name, own in hidden(original).items()}
    found = unified(represent(ruined, original, retrained), represent(retrained, original, retrained))
    assert found.agl == pytest.approx(1)
    assert math.isnan(found.agr)
    assert math.isnan(found.h_lr)
    assert any("dead" in reason for reason in found.reasons)
    assert math.isnan(aggregate([]))


def test_excess_over_retrained_seeds() -> None:
    found = excess(0.98, [0.91, 0.95])
    assert found.value == pytest.approx(0.05)
    assert found.band == (0.91, 0.95)
    assert found.outside
    assert not excess(0.93, [0.91, 0.95]).outside
    with pytest.raises(InputError, match="no retrained model"):
        excess(0.9, [])


def test_a_retrained_model_that_is_none() -> None:
    own, other = sets(0), sets(7)
    check_retrained(own, other, trained_on=other["retain"].ids, labels=("abc", "abc"))
    with pytest.raises(InputError, match=f"trained on the forget row '{sorted(own['forget'].ids)[0]}'"):
        check_retrained(own, other, trained_on=[*own["forget"].ids, "r0"])
    with pytest.raises(InputError, match="no table of the retrained model on 'forget_test'"):
        check_retrained(own, {name: other[name] for name in ("forget", "retain")})
    with pytest.raises(InputError, match="other classes"):
        check_retrained(own, other, labels=("abc", "acb"))
    wide = {name: replace(t, outputs=np.zeros((len(t), 4))) for name, t in other.items()}
    with pytest.raises(InputError, match="3 classes, and 4 of the retrained model"):
        check_retrained(own, wide)
    with pytest.raises(InputError, match="no table of the retain set"):
        represent({"forget": own["forget"]}, own, other)


def test_classes_nearest_to_a_downstream_set() -> None:
    train = clusters(90, 0)
    target = of_labels(clusters(60, 1, who="d"), (1,))
    order = nearest_classes(train, target)
    assert order[0][0] == 1
    assert order[0][1] > order[1][1]
    means = [train.features[train.labels == k].mean(0) for k in range(CLASSES)]
    other = target.features.mean(0)
    for label, score in order:
        assert score == pytest.approx(means[label] @ other / np.linalg.norm(means[label]) / np.linalg.norm(other))


def test_figures_are_kept_by_set() -> None:
    seen = represent(sets(0), sets(0), sets(7))
    assert isinstance(seen, Representation)
    assert set(seen.accuracy) == set(seen.cka_original) == {"forget", "retain", "forget_test", "retain_test"}
    assert seen.cka_original["retain"].value == pytest.approx(1)
    assert all(found.estimate is not None and found.estimate.low is not None for found in seen.knn.values())
