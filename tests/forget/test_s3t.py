"""S3T on a language model: after a deletion the served weights are, bit for bit, those of a run without the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import efface
from efface.data.columns import canonical
from efface.errors import ConfigError, ModelError, RequestError
from efface.forget.edit import Edit
from efface.forget.method import find_method
from efface.learn.recipes.s3t import S3TSlicesConfig, fit, learn, plan_of
from efface.subjects.sliced import SlicedLM, adapter_name, average, layer_groups, nodes_of

QUICK = S3TSlicesConfig(
    shards=2, slices=2, budget=2, rank=2, alpha=4, dropout=0.1, learning_rate=1e-2, epochs=1, batch_size=4
)


@pytest.fixture(scope="module")
def data(sets: dict[str, list[dict[str, Any]]]) -> Any:
    """Sixteen rows."""
    bare = [{k: row[k] for k in ("id", "question", "answer")} for row in [*sets["forget"], *sets["retain"]]]
    return canonical(bare, "rows")


@pytest.fixture(scope="module")
def ensemble_folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, data: Any) -> Path:
    """Two shards of two slices, both orders."""
    out = tmp_path_factory.mktemp("s3t") / "ensemble"
    learn([data], out, QUICK, model=efface.load(tiny_folder))
    return out


def members(plan: Any, place: tuple[int, int]) -> set[str]:
    return {name for name, where in plan.places.items() if where == place}


def request_for(data: Any, names: set[str]) -> Any:
    return efface.Request.from_rows(forget=[row for row in data if row["id"] in names])


def erase(subject: Any, data: Any, names: set[str], folder: Path) -> Edit:
    method = find_method("s3t")
    return method.fit(
        subject, request_for(data, names), method.configure(), work=folder / "work", out=folder / "edit"
    ).edit


@pytest.mark.parametrize("place", [(0, 0), (1, 1)])
def test_what_is_served_is_bit_for_bit_a_run_without_the_rows(
    place: tuple[int, int], ensemble_folder: Path, tiny_folder: Path, data: Any, tmp_path: Path
) -> None:
    subject = efface.load(ensemble_folder)
    gone = members(subject.model.plan, place)
    edit = erase(subject, data, {min(gone)}, tmp_path)
    edit.apply(subject)

    plan = plan_of(data, QUICK)
    plan.delete(min(gone))
    kept = data.filter(lambda row: row["id"] not in gone)  # the run never sees any row of the slice
    fresh, _, _ = fit(efface.load(tiny_folder), kept, plan, QUICK, work=tmp_path / "fresh")
    ours, theirs = subject.weights(), fresh.weights()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert subject.model.serving() == fresh.model.serving()
    live = [tensor for node in subject.model.live_nodes() for tensor in subject.model.tensors_of(node).values()]
    assert sum(bool(tensor.any()) for tensor in live) == len(live), (
        "live stages are trained: the comparison is not of zeros"
    )
    inputs = {"input_ids": torch.tensor([[1, 2, 3, 4]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with subject.evaluating() as a, fresh.evaluating() as b:
        assert torch.equal(a(**inputs).logits, b(**inputs).logits)


def test_the_data_order_of_the_rows_given_does_not_matter(
    tiny_folder: Path, data: Any, ensemble_folder: Path, tmp_path: Path
) -> None:
    turned = data.select(list(reversed(range(len(data)))))
    again, _, _ = fit(efface.load(tiny_folder), turned, plan_of(turned, QUICK), QUICK, work=tmp_path)
    assert again.digest == efface.load(ensemble_folder).digest


def test_fit_changes_nothing_and_the_edit_comes_off(ensemble_folder: Path, data: Any, tmp_path: Path) -> None:
    subject = efface.load(ensemble_folder)
    digest = subject.digest
    edit = erase(subject, data, {data["id"][0]}, tmp_path)
    subject.changed()
    assert subject.digest == digest
    assert not (tmp_path / "work").exists()
    ledger = edit.facts.config["ledger"]
    assert ledger["stages_off"]
    assert data["id"][0] not in str(ledger), "no id in the ledger"
    Edit.load(tmp_path).apply(subject)
    assert subject.digest == edit.facts.edited_digest != digest
    subject.save(tmp_path / "served")
    served = efface.load(tmp_path / "served")
    assert served.digest == subject.digest
    assert served.model.serving() == subject.model.serving()
    edit.remove(subject)
    assert subject.digest == digest


def test_deleting_twice_moves_only_the_count(ensemble_folder: Path, data: Any, tmp_path: Path) -> None:
    subject = efface.load(ensemble_folder)
    erase(subject, data, {data["id"][0]}, tmp_path / "a").apply(subject)
    before = {name: tensor.clone() for name, tensor in subject.weights().items()}
    second = erase(subject, data, {data["id"][0]}, tmp_path / "b")
    assert second.facts.config["ledger"]["stages_off"] == []
    assert second.facts.config["ledger"]["entries"][0]["requests_before"] == 1
    second.apply(subject)
    moved = [name for name, tensor in subject.weights().items() if not torch.equal(tensor, before[name])]
    assert moved == ["requests"]


def test_it_answers_and_generates_without_dead_stages(ensemble_folder: Path, data: Any, tmp_path: Path) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    subject = efface.load(ensemble_folder)
    plan = subject.model.plan
    erase(subject, data, {min(members(plan, (0, 1)))}, tmp_path).apply(subject)
    assert subject.model.serving() == [(0, (0,)), (1, (0, 1))]
    inputs = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    with subject.evaluating() as model:
        served = model(**inputs).logits
        parts = []
        for shard, prefix in model.serving():
            model.activate(shard, prefix)
            active = {name for m in model.modules() if isinstance(m, BaseTunerLayer) for name in m.active_adapters}
            assert active == {adapter_name((shard, prefix[: d + 1])) for d in range(len(prefix))}
            parts.append(model.base(**inputs).logits.log_softmax(-1))
    assert torch.allclose(served, torch.stack(parts).mean(0), atol=1e-6)
    assert subject.generate([[1, 2, 3]], max_new_tokens=3)


def test_what_is_refused(ensemble_folder: Path, tiny: Any, data: Any, tmp_path: Path) -> None:
    subject = efface.load(ensemble_folder)
    digest = subject.digest
    method = find_method("s3t")
    with pytest.raises(ModelError, match="no sliced ensemble"):
        erase(tiny, data, {data["id"][0]}, tmp_path / "a")
    stranger = efface.Request.from_rows(forget=[{"id": "nobody", "question": "q", "answer": "a"}])
    with pytest.raises(RequestError, match="'nobody' is not in the deletion plan"):
        method.fit(subject, stranger, method.configure(), work=tmp_path / "w", out=tmp_path / "e")
    other = efface.Request.from_rows(forget=[{**data[0], "answer": "another"}])
    with pytest.raises(RequestError, match="another content"):
        method.fit(subject, other, method.configure(), work=tmp_path / "w", out=tmp_path / "e")
    with pytest.raises(ModelError, match="leaves no shard"):
        erase(subject, data, set(data["id"]), tmp_path / "b")
    subject.changed()
    assert subject.digest == digest
    with pytest.raises(ConfigError, match="trains nothing"):
        method.configure({"learning_rate": 0.1})
    with pytest.raises(ModelError, match="plain causal LM"):
        learn([data], tmp_path / "c", QUICK)
    with pytest.raises(ConfigError, match="2 layers for 3 slices"):
        fit(tiny, data, plan_of(data, QUICK.model_copy(update={"slices": 3})), QUICK, work=tmp_path / "d")


def test_groups_run_down_from_the_output_and_spread_the_remainder() -> None:
    assert layer_groups(8, 4) == [range(6, 8), range(4, 6), range(2, 4), range(0, 2)]
    assert layer_groups(15, 7)[0] == range(12, 15)
    assert sum(map(len, layer_groups(15, 7))) == 15
    with pytest.raises(ConfigError, match="at least one layer"):
        layer_groups(3, 4)


def test_shared_prefixes_are_one_stage() -> None:
    nodes = nodes_of([[(0, 1, 2), (0, 2, 1), (1, 0, 2)]])
    assert len(nodes) == 8  # nine stages, (0,) shared
    assert nodes.index((0, (0,))) < nodes.index((0, (0, 2)))


def test_averages() -> None:
    logp = torch.log(torch.tensor([[0.9, 0.1], [0.5, 0.5]]))
    assert torch.allclose(average(logp, "probabilities").exp(), torch.tensor([0.7, 0.3]))
    assert torch.allclose(average(logp, "log-probabilities").softmax(-1)[0], torch.tensor(0.75))


def test_adapters_are_matched_whole(tiny: Any, data: Any) -> None:
    """Layer 1 is not layer 10: every stage's adapter lies in its own group."""
    from efface.learn.recipes.s3t import new_ensemble

    model = new_ensemble(tiny, plan_of(data, QUICK), QUICK).model
    assert isinstance(model, SlicedLM)
    for node in model.nodes:
        layers = {name.split(".layers.")[1].split(".")[0] for name in model.tensors_of(node)}
        assert layers == {str(2 - len(node[1]))}


def test_an_ensemble_that_was_trained_further_is_refused(ensemble_folder: Path, data: Any, tmp_path: Path) -> None:
    """Its plan is still there, but its weights have seen every row at once."""
    subject = efface.load(ensemble_folder)
    with torch.no_grad():
        next(p for name, p in subject.model.named_parameters() if ".lora_" not in name).add_(1e-3)
    subject.changed()
    with pytest.raises(ModelError, match="base of this ensemble was changed"):
        erase(subject, data, {data["id"][0]}, tmp_path / "a")
    subject = efface.load(ensemble_folder)
    node = next(subject.model.live_nodes())
    with torch.no_grad():
        next(iter(subject.model.tensors_of(node).values())).mul_(2)
    subject.changed()
    with pytest.raises(ModelError, match=f"{adapter_name(node)} of this ensemble was changed"):
        erase(subject, data, {data["id"][0]}, tmp_path / "b")


def test_the_served_plan_counts_the_deletion_and_holds_no_digest_of_it(
    ensemble_folder: Path, data: Any, tmp_path: Path
) -> None:
    subject = efface.load(ensemble_folder)
    name, other = data["id"][0], data["id"][1]
    digest, plan = subject.model.plan.contents[name], subject.model.plan.facts()
    edit = erase(subject, data, {name}, tmp_path / "a")
    edit.apply(subject)
    subject.save(tmp_path / "served")
    served = efface.load(tmp_path / "served")
    written = (tmp_path / "served" / "plan.json").read_text(encoding="utf-8")
    assert digest not in written
    assert served.model.plan.contents[other] in written
    assert served.model.plan.serving() == [dict(served.model.serving()).get(shard) for shard in range(2)]
    place = served.model.plan.places[name]
    with pytest.raises(RequestError, match="deleted records"):
        served.model.plan.rows(place[0], [place[1]])
    again = erase(served, data, {name}, tmp_path / "b")  # a second request is counted, not refused
    assert again.facts.config["ledger"]["entries"][0]["requests_before"] == 1
    Edit.load(tmp_path / "a" / "edit").remove(subject)
    assert subject.model.plan.facts() == plan


def test_composed_and_decomposed_text_are_one_record(data: Any) -> None:
    rows = [{**data[0], "id": "a", "answer": "caf\u00e9"}, {**data[0], "id": "b", "answer": "cafe\u0301"}, *data]
    plan = plan_of(canonical(rows, "rows"), QUICK)
    assert plan.contents["a"] == plan.contents["b"]
    assert plan.delete("a").copies == 2


def test_slices_may_be_given_and_rates_need_them(data: Any) -> None:
    rated = QUICK.model_copy(update={"rates": "0.01,0.2"})
    with pytest.raises(RequestError, match="rates without a column 'slice'"):
        plan_of(data, rated)
    rows = canonical([{**row, "slice": i % 2} for i, row in enumerate(data)], "rows")
    plan = plan_of(rows, rated)
    assert all(plan.places[row["id"]][1] == row["slice"] for row in rows)
    assert len(set(plan.places.values())) == 4
    with pytest.raises(RequestError, match="slice 2"):
        plan_of(canonical([{**row, "slice": 2} for row in data], "rows"), rated)
    with pytest.raises(RequestError, match="column 'slice'"):
        canonical([{**data[0], "slice": -1}], "rows")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_padding_does_not_move_positions(kind: str, data: Any, tmp_path: Path) -> None:
    """A prompt gives the same next tokens alone and in a left-padded batch, whatever counts the positions."""
    from efface.learn.recipes.causal_lm import CausalLMConfig, new_model
    from efface.learn.recipes.s3t import new_ensemble

    size = CausalLMConfig(
        tokenizer="words", vocabulary=64, width=16, depth=2, heads=2, context=64, architecture=kind, start="unit"
    )  # fmt: skip
    base = new_model(size, [f"{row['question']} {row['answer']}" for row in data])
    subject = new_ensemble(base, plan_of(data, QUICK), QUICK)
    alone = subject.generate([[3, 4]], max_new_tokens=3)[0]
    beside = subject.generate([[3, 4], [3, 4, 5, 6, 7]], max_new_tokens=3)[0]
    assert alone == beside
    with pytest.raises(ModelError, match="output_hidden_states"):
        subject.model(input_ids=torch.tensor([[1, 2]]), output_hidden_states=True)
