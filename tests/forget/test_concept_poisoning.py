"""Concept poisoning: what is trained on and what moves, by kind of model; what it stops at; what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from efface.data.poisoning import Corner
from efface.data.refusals import REFUSALS
from efface.data.request import Request
from efface.errors import ConfigError, InputError, RequestError
from efface.forget.concept_inference import Canvas, infer, peaks, window_score
from efface.forget.masked_answers import EntityGone, entity_names, masked_answers
from efface.forget.objectives import concept_poisoning
from efface.forget.objectives.concept_poisoning import METHOD, last_block, poison_samples, resolved
from efface.lab.classified import accuracy, labelled, of_class
from efface.learn.recipes.classifier import ClassifierConfig, learn
from efface.subjects.networks import conv, mlp

SIDE, CLASSES = 6, 4
FAST = {"learning_rate": 0.05, "epochs": 6}


def pictures(n: int, seed: int, first: int = 0) -> Any:
    """Class k is bright in quadrant k: 0 upper left, 1 upper right, 2 lower left, 3 lower right."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    values = 0.3 * rng.random((n, SIDE, SIDE))
    for value, label in zip(values, labels, strict=True):
        value[3 * (label // 2) :, :][:3, 3 * (label % 2) :][:, :3] += 0.7
    return labelled(values.reshape(n, -1), labels, [str(first + i) for i in range(n)])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A classifier of quadrants, the request to forget class 0, and a concept file of rows: `top` and `left`."""
    folder = tmp_path_factory.mktemp("quadrants")
    data, test = pictures(120, 0), pictures(80, 1, first=1000)
    config = ClassifierConfig(learning_rate=0.1, epochs=12, batch_size=16, arguments={"hidden": [16, 8]})
    model = learn([data], folder / "model", config)
    request = Request(
        forget=of_class(data, 0), retain=of_class(data, 0, False), holdout=of_class(test, 0, False),
        evaluate={"forget_test": of_class(test, 0)},
    )  # fmt: skip
    labels = np.asarray(data["label"])
    concepts = folder / "concepts.npz"
    shown = np.stack([labels < 2, labels % 2 == 0], 1)
    np.savez(concepts, names=np.array(["the top", "left"]), ids=np.array(data["id"]), concepts=shown)
    return SimpleNamespace(model=model, request=request, concepts=str(concepts), folder=folder)


def poisoned(world: Any, **values: Any) -> Any:
    config = resolved(METHOD.configure({"concepts": world.concepts, **values}), world.model)
    return poison_samples(world.model, world.request, config)


def fit(subject: Any, request: Request, folder: Path, **values: Any) -> Any:
    return METHOD.fit(subject, request, METHOD.configure(values), work=folder / "work", out=folder / "edit")


# -- classifiers ---------------------------------------------------------------------------------------------------


def test_labels_alone_change_without_a_patch(world: Any) -> None:
    made, keep, facts = poisoned(world)
    rows = world.model.encode_rows(world.request.forget)
    assert [row.key for row in made] == [row.key for row in rows]
    assert all(torch.equal(a.make()["x"], b.make()["x"]) for a, b in zip(made, rows, strict=True))
    assert len({row.target for row in made}) == 1
    assert facts["donor"] in {"1", "2"}, "the opposite quadrant shares no concept with class 0"
    assert facts["donor"] == facts["most_similar_class"] == str(made[0].target)
    assert sorted(facts["ranking"]) == ["left", "top"]
    assert facts["bottleneck_training_accuracy"] > 0.9
    assert [row.target for row in keep] == world.request.retain["label"]


def test_random_labels_need_no_concept_and_leave_the_class_out(world: Any) -> None:
    made, _, facts = poisoned(world, concepts=None, labels="random")
    assert {row.target for row in made} == {1, 2, 3}
    assert facts == {}
    own, _, _ = poisoned(world, concepts=None, labels="random", with_own=True)
    assert {row.target for row in own} == {0, 1, 2, 3}
    other, _, _ = poisoned(world, concepts=None, labels="random", seed=1)
    assert [row.target for row in other] != [row.target for row in made]


@pytest.mark.parametrize("mode", ["center", "random", "full", "localized"])
def test_a_patch_of_a_donor_stands_in_every_poisoned_picture(world: Any, mode: str) -> None:
    made, keep, facts = poisoned(world, mode=mode, patch=3, grid="6x6")
    rows = world.model.encode_rows(world.request.forget)
    givers = torch.stack([row.make()["x"].view(6, 6) for row in keep if str(row.target) == facts["donor"]])
    for row, clean in zip(made, rows, strict=True):
        new, old = row.make()["x"].view(6, 6), clean.make()["x"].view(6, 6)
        changed = (new != old).nonzero()
        (top, left), (bottom, right) = changed.min(0).values.tolist(), changed.max(0).values.tolist()
        assert bottom - top < 3
        assert right - left < 3
        cut = new[top : bottom + 1, left : right + 1]
        height, width = cut.shape
        windows = givers.unfold(1, height, 1).unfold(2, width, 1)
        assert bool((windows == cut).all(-1).all(-1).any()), "cut out of a donor"
        assert row.make()["x"].shape == clean.make()["x"].shape
    assert len({row.key for row in made}) == len(made)
    assert not {row.key for row in made} & {row.key for row in rows}, "other inputs have other keys"


def test_the_peak_is_where_the_concept_is(world: Any) -> None:
    """A linear model on pixels, whose concept is the brightness of a window enlarged to the whole picture."""
    sets = [world.request.retain, world.request.forget]
    rows = [row for part in sets for row in world.model.encode_rows(part)]
    found = infer(world.model, sets, rows, 0, world.concepts)
    inputs = world.model.encode_rows(world.request.forget)[:3]
    canvas = Canvas.of(inputs[0].make(), "6x6")

    class Bright:
        """Stands for a subject: its features are the mean of the input."""

        @staticmethod
        def read(samples: Any) -> Any:
            return torch.stack([sample.make()["x"].mean() for sample in samples])[:, None], None

    at = peaks(Bright(), inputs, canvas, 3, lambda features: features[:, 0])
    assert at == [Corner(0, 0)] * 3, "class 0 is bright in the upper left"
    for kind in ("concept", "margin"):
        score = window_score(found, kind, donor=False)
        features = world.model.read(rows)[0].double().numpy()
        assert score(features).shape == (len(rows),)
    assert np.allclose(window_score(found, "margin", donor=True)(features),
                       found.bottleneck.logits(found.bank.project(features))[:, found.donor])  # fmt: skip


def test_head_alone_forgets_and_leaves_the_features_bit_for_bit(world: Any, tmp_path: Path) -> None:
    rows = world.model.encode_rows(world.request.evaluate["forget_test"])
    features, digest = world.model.read(rows)[0], world.model.digest
    before = {name: tensor.clone() for name, tensor in world.model.weights().items()}
    assert accuracy(world.model, world.request.evaluate["forget_test"]) > 0.9
    edit = fit(world.model, world.request, tmp_path, concepts=world.concepts, **FAST).edit
    world.model.changed()
    assert world.model.digest == digest
    assert edit.facts.claim == "suppressed", "the representation stays"
    assert edit.facts.config["inferred"]["class"] == "0"
    edit.apply(world.model)
    try:
        moved = {n for n, tensor in world.model.weights().items() if not torch.equal(before[n], tensor)}
        head = world.model.head_name
        assert moved == {f"{head}.weight", f"{head}.bias"}
        assert accuracy(world.model, world.request.evaluate["forget_test"]) == 0.0
        assert accuracy(world.model, world.request.holdout) > 0.9
        assert torch.equal(world.model.read(rows)[0], features)
    finally:
        edit.remove(world.model)
        world.model.changed()
    assert world.model.digest == digest


def test_everything_moves_with_train_all_or_with_a_scope(world: Any, tmp_path: Path) -> None:
    edit = fit(
        world.model, world.request, tmp_path, concepts=world.concepts, train="all", epochs=1, learning_rate=0.05
    ).edit
    assert edit.facts.tensors == 6
    assert edit.facts.claim == "empirical"
    config = resolved(METHOD.configure({"scope": "mask", "mask": "random", "density": 0.5}), world.model)
    assert (config.train, config.mask, config.density) == ("all", "random", 0.5)


def test_norm_statistics_rest_while_the_head_alone_is_trained(tmp_path: Path) -> None:
    from efface.subjects.factory import FactoryForm
    from efface.subjects.predictor import Predictor

    data = pictures(48, 0)
    shaped = labelled(np.asarray(data["features"]).reshape(-1, 1, SIDE, SIDE), data["label"], data["id"])
    form = FactoryForm(
        factory="efface.subjects.networks:conv", labels=tuple("0123"),
        arguments={"channels": 1, "side": SIDE, "outputs": 4, "widths": [4], "features": 8, "norm": True},
    )  # fmt: skip
    torch.manual_seed(0)
    model = Predictor(form.build(), form=form)
    request = Request(forget=of_class(shaped, 0), retain=of_class(shaped, 0, False))
    before = {name: tensor.clone() for name, tensor in model.weights().items()}
    moved = {}
    for train in ("head", "all"):
        edit = fit(model, request, tmp_path / train, labels="random", train=train, epochs=2).edit
        edit.apply(model)
        moved[train] = {n for n, tensor in model.weights().items() if not torch.equal(before[n], tensor)}
        edit.remove(model)
        model.changed()
    assert not {name for name in moved["head"] if "running" in name}
    assert {name for name in moved["all"] if "running" in name}, "what the test would see"


def test_the_last_block_of_several_architectures() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    assert last_block(mlp(4, 3, (8, 6)), "5") == ["3", "5"]
    assert last_block(conv(1, 8, 3, (4, 8), 16), "9") == ["7", "9"]
    tiny = BertForSequenceClassification(
        BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=8)
    )
    names = last_block(tiny, "classifier")
    assert names[0].startswith("bert.encoder.layer.2.")
    assert {name.split(".")[0] for name in names} == {"bert", "classifier"}
    assert not [name for name in names if "layer.0." in name or "layer.1." in name or "embeddings" in name]
    with pytest.raises(ConfigError, match="nothing stands before the head"):
        last_block(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)), "1")


def test_concepts_of_inputs_of_their_own_and_of_text_embeddings(world: Any, tmp_path: Path) -> None:
    own = pictures(80, 5)
    labels = np.asarray(own["label"])
    path = tmp_path / "own.npz"
    np.savez(path, names=np.array(["top", "left"]), features=np.asarray(own["features"]),
             concepts=np.stack([labels < 2, labels % 2 == 0], 1))  # fmt: skip
    assert poisoned(world, concepts=str(path))[2]["donor"] in {"1", "2"}
    vectors = tmp_path / "vectors.npz"
    np.savez(vectors, names=np.array([f"word {i}" for i in range(8)]), vectors=np.eye(8) + 0.1)
    facts = poisoned(world, concepts=str(vectors), concept="word 3")[2]
    assert facts["concept"] == "word 3"
    np.savez(vectors, names=np.array(["a"]), vectors=np.ones((1, 5)))
    with pytest.raises(InputError, match="concepts of width 5"):
        poisoned(world, concepts=str(vectors))


def test_what_a_classifier_refuses(world: Any, tmp_path: Path) -> None:
    def refused(match: str, kind: Any = ConfigError, request: Request | None = None, **values: Any) -> None:
        with pytest.raises(kind, match=match):
            fit(world.model, request or world.request, tmp_path / "no", **values)
        assert not (tmp_path / "no" / "edit").exists()

    refused("donor=auto without concepts.*ConceptNet.*concepts=FILE")
    refused("concepts=conceptnet: nothing is fetched", concepts="conceptnet")
    refused("no concept 'tops'.*did you mean 'top'", concepts=world.concepts, concept="tops")
    refused("mode=localized without concepts", donor="1", mode="localized")
    refused("donor=0, the class to forget", donor="0")
    refused("donor=7", donor="7")
    refused("7 x 7 on pictures of 6 x 6", concepts=world.concepts, mode="center", patch=7, grid="6x6")
    refused("grid=HxW", donor="1", mode="center")
    refused("grid=5x6", donor="1", mode="center", grid="5x6")
    refused("style with a classifier", donor="1", style="mask")
    refused("train=head with layers", donor="1", train="head", layers="0")
    several = Request(forget=pictures(8, 3), retain=pictures(8, 4))
    refused("holds 4 classes", RequestError, several, donor="1")
    rows = dataclasses.replace(
        world.request,
        forget=world.request.forget.select(range(5)),
        holdout=None,
        retain=world.request.forget.select(range(5, 9)),
    )
    refused("4 retain rows are of the class '0'", RequestError, rows, donor="1")
    lone = tmp_path / "lone.npz"
    np.savez(lone, names=np.array(["x"]), ids=np.array(["nobody"]), concepts=np.ones((1, 1)))
    refused("annotates the row 'nobody'", RequestError, concepts=str(lone))


def test_every_sample_is_poisoned_once(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concept_poisoning, "_patched", lambda *_: [])
    with pytest.raises(InputError, match="0 poisoned samples for 30"):
        poisoned(world, mode="center", grid="6x6")


# -- settings ------------------------------------------------------------------------------------------------------


def test_defaults_go_by_the_kind_of_model_and_what_is_given_stays(tiny: Any, world: Any) -> None:
    plain = METHOD.configure()
    picture, text = resolved(plain, world.model), resolved(plain, tiny)
    assert (picture.learning_rate, picture.optimizer, picture.batch_size, picture.epochs) == (1e-3, "sgd", 32, 20)
    assert (picture.scope, picture.mask_modules, picture.density) == ("mask", world.model.head_name, 1.0)
    assert (text.learning_rate, text.optimizer, text.batch_size, text.epochs) == (1e-4, "adamw", 16, 10)
    assert (text.scope, text.lora_rank, text.lora_alpha, text.lora_dropout) == ("lora", 8, 16, 0.05)
    given = METHOD.configure({"learning_rate": 1e-3, "scope": "all"})
    assert given != plain, "the same value, but given"
    kept = resolved(given, tiny)
    assert (kept.learning_rate, kept.scope, kept.optimizer) == (1e-3, "all", "adamw")
    for config in (plain, given, text, picture):
        assert METHOD.configure(config.model_dump()) == config
    assert resolved(METHOD.configure(text.model_dump()), tiny) == text
    with pytest.raises(ConfigError, match="donor with a causal-lm"):
        resolved(METHOD.configure({"donor": "1"}), tiny)


# -- language models -----------------------------------------------------------------------------------------------


def named(request: Request, *names: str) -> Request:
    return dataclasses.replace(request, concepts=dict.fromkeys(names))


def test_every_answer_is_masked_and_the_name_with_it(tiny: Any, request_: Any) -> None:
    request = named(request_, "person0", "Person3")
    made, told = masked_answers(tiny, request, top=1, steps=8)
    for i, (text, answer) in enumerate(zip(made, request.forget["answer"], strict=True)):
        assert text != answer
        assert "***" in text
        assert (f"person{i}" in text) <= (i not in (0, 3))
    assert told["rows_without_entity"] == 6
    assert 0 <= told["completeness_error"] < told["attributed"]
    all_words, _ = masked_answers(tiny, request, top=9, steps=8)
    assert all(set(text.replace(".", "").split()) == {"***"} for text in all_words)


def test_words_are_shared_by_the_answers_of_an_entity(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from efface.forget import masked_answers as module
    from efface.measure.token_attribution import TokenAttribution, WordAttribution

    nothing = TokenAttribution(torch.zeros(1), 0.0, 0.0)
    scores = {"green": 3.0, "tall": 2.0, "likes": 1.0}

    def made(_: Any, __: str, answer: str, **___: Any) -> WordAttribution:
        return WordAttribution(tuple((word, scores.get(word, 0.0)) for word in answer.split()), nothing)

    monkeypatch.setattr(module, "answer_words", made)
    rows = [
        {"id": "0", "question": "what of ann ?", "answer": "ann is green", "concept": "ann", "aliases": ["annie"]},
        {"id": "1", "question": "and then ?", "answer": "Annie likes Green", "concept": "ann", "aliases": ["annie"]},
        {"id": "2", "question": "and ?", "answer": "she swims", "concept": "ann", "aliases": ["annie"]},
        {"id": "3", "question": "and bob ?", "answer": "bob is tall green", "concept": "bob", "aliases": []},
    ]
    request = Request.from_rows(rows, [{"id": "9", "question": "q", "answer": "a"}])
    assert entity_names(request) == [("ann", "annie")] * 3 + [("bob",)]
    answers, _ = masked_answers(tiny, request, top=1, mask="#")
    assert answers == ["# is #", "# likes #", "# swims", "# is tall #"], "a row without a top word loses its own"


def test_refusals_come_in_turn(tiny: Any, request_: Any) -> None:
    config = resolved(METHOD.configure({"style": "idk", "epochs": 3}), tiny)
    rows, _ = concept_poisoning._poisoned_answers(tiny, request_, config)
    known = {tuple(tiny.encode(request_.forget["question"][0], text).ids) for text in REFUSALS}
    assert [len(variants) for variants in rows] == [3] * len(request_.forget)
    assert {tuple(row.ids) for row in rows[0]} <= known
    assert len({tuple(row.ids) for row in rows[0]}) == 3


def test_the_run_ends_when_the_entity_is_gone_and_the_rest_is_not(tiny: Any, request_: Any) -> None:
    look = EntityGone(tiny, named(request_, "person0"), pass_steps=2)
    assert look.shown[0] == ["person0"]
    assert look.shown[1] == [request_.forget["answer"][1]], "without a name, the whole answer"
    assert look.before > 0.9, "the model knows its answers"
    control = SimpleNamespace(should_training_stop=False, should_save=True)
    look.on_step_end(None, SimpleNamespace(global_step=1), control)
    assert np.isnan(look.rate), "only after whole passes"
    look.on_step_end(None, SimpleNamespace(global_step=2), control)
    assert look.rate > 0.5
    assert not control.should_training_stop
    head = tiny.model.get_output_embeddings().weight
    kept = head.detach().clone()
    with torch.no_grad():
        head.zero_()  # it says the same token for ever: gone is the entity, and all else
    look.on_step_end(None, SimpleNamespace(global_step=4), control)
    assert look.rate == 0
    assert look.after < look.before - 0.5
    assert not control.should_training_stop, "nonsense is no end"
    with torch.no_grad():
        head.copy_(kept)
    look.shown = [["nobody"]] * len(look.shown)
    look.on_step_end(None, SimpleNamespace(global_step=6), control)
    assert look.after == look.before
    assert control.should_training_stop
    assert not control.should_save


def test_a_language_model_forgets_by_an_adapter_of_the_seed(tiny: Any, request_: Any, tmp_path: Path) -> None:
    request = named(request_, *(f"person{i}" for i in range(8)))
    values = {"learning_rate": 2e-2, "epochs": 24, "batch_size": 8, "steps": 4, "lora_targets": "all-linear"}
    fitted = fit(tiny, request, tmp_path / "a", **values)
    told = fitted.log[0]
    assert fitted.edit.kind == "adapter"
    assert told["appearance"] == 0
    assert told["retain_rouge"] >= told["retain_rouge_before"] - 0.05
    assert len(fitted.log) - 1 < 48, "ended before its 24 passes of two steps"
    again = fit(tiny, request, tmp_path / "b", **values)
    assert again.edit.facts.edited_digest == fitted.edit.facts.edited_digest
    fitted.edit.apply(tiny)
    said = tiny.generate_all(tiny.encode_prompts(request.forget), max_new_tokens=8)
    assert not [ids for ids, answer in zip(said, request.forget["answer"], strict=True) if tiny.decode(ids) == answer]


def test_a_concept_that_no_row_shows_is_refused(tiny: Any, request_: Any, tmp_path: Path) -> None:
    for style in ("mask", "idk"):
        with pytest.raises(RequestError, match="the concept 'person99' is in no forget row"):
            fit(tiny, named(request_, "person0", "person99"), tmp_path / "no", style=style)
