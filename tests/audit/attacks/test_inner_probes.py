"""Probes, a new head and the lens: what they read from a model that knows, and when they must say that they cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from efface.audit.attacks.inner_probes import answer_probe, lens_ranks, new_head, truth_probe
from efface.data.columns import canonical
from efface.lab.facts import fact_model, of_form, split
from efface.subjects.lens import logit_lens


@pytest.fixture(scope="module")
def world() -> Any:
    request, _, _ = split("elements")
    return request, fact_model("elements"), fact_model("elements", retrained=True)


def test_the_answer_is_in_the_states_of_a_model_that_knows(world: Any) -> None:
    request, original, retrained = world
    best, control = {}, {}
    for name, model in (("original", original), ("retrained", retrained)):
        kept, gone = (model.encode_rows(data) for data in (request.retain, request.forget))
        found = answer_probe(model, kept, gone, 0)
        assert np.shape(found["hits"]) == (4, len(found["rows"]))  # embedding and three layers
        best[name], control[name] = np.mean(found["hits"], axis=1).max(), np.mean(found["control"], axis=1).max()
    assert best["original"] > 0.8
    assert best["retrained"] < 0.4
    assert max(control.values()) < 0.3


def test_classes_that_the_retain_set_lacks_do_not_count(tiny: Any) -> None:
    rows = [{"id": str(i), "question": f"Which colour does person{i} like ?", "answer": "red"} for i in range(10)]
    other = [{**row, "answer": "blue"} for row in rows]
    encoded = [tiny.encode_rows(canonical(part, "rows")) for part in (rows, other)]
    assert "0 forget rows" in answer_probe(tiny, encoded[0], encoded[1], 0)["reason"]


def test_the_truth_probe_ranks_true_above_wrong(world: Any) -> None:
    request, original, _ = world
    found = truth_probe(original, of_form(request.retain, 1), of_form(request.forget, 1))
    assert np.shape(found["hits"]) == (4, 32)
    assert found["chance"] == pytest.approx(1 / 6)
    assert (
        np.mean(found["hits"][0]) == 0
    )  # the embedding of the last token alone, the same in all: no row wins outright
    bare = of_form(request.forget, 1).remove_columns("perturbed_answer")
    assert "perturbed_answer" in truth_probe(original, of_form(request.retain, 1), bare)["reason"]


def test_a_new_head_speaks_for_the_body(world: Any) -> None:
    request, original, retrained = world
    shares = {}
    for name, model in (("original", original), ("retrained", retrained)):
        kept, gone = (model.encode_rows(of_form(data, 0)) for data in (request.retain, request.forget))
        shares[name] = new_head(model, kept, gone)["shares"]
    assert np.mean(shares["original"]) > np.mean(shares["retrained"]) + 0.2
    plain = torch.nn.Module.state_dict(original.model)
    assert all(torch.isfinite(tensor).all() for tensor in plain.values())
    assert "fewer than" in new_head(original, kept, gone[:3])["reason"]


def test_ranks_against_the_whole_lens(world: Any) -> None:
    request, original, _ = world
    rows = original.encode_rows(request.forget)[:5]
    logp = logit_lens(original, rows)  # [L + 1, N, V]
    slow = [
        [int((logp[layer, i] > logp[layer, i, row.ids[row.n_prompt]]).sum()) for i, row in enumerate(rows)]
        for layer in range(len(logp))
    ]
    assert lens_ranks(original, rows)["ranks"] == slow
