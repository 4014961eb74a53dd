"""The layers: equal to a plain loop, the last one to the model itself; shares by hand; prompts that tell nothing are counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from efface.audit.metrics.layers import Layers, mean_curves, probes, read_layers, shares
from efface.errors import InputError, ModelError
from efface.subjects.lens import final_norm


def prompts(request_: Any) -> list[tuple[str, str, str, str]]:
    return [(row["id"], row["question"], row["answer"], "green") for row in request_.forget]


def test_every_layer_against_a_plain_loop_and_the_last_against_the_model(tiny: Any, request_: Any) -> None:
    found, skipped = probes(tiny, prompts(request_))
    assert (len(found), skipped) == (8, 0)
    read = read_layers(tiny, found, batch_size=3)
    norm, head = final_norm(tiny.model), tiny.model.get_output_embeddings()
    for column, probe in enumerate(found):
        ids = torch.tensor([probe.row.ids[: probe.row.n_prompt]])
        with torch.no_grad():
            out = tiny.model(ids, output_hidden_states=True)
            for layer, state in enumerate(out.hidden_states):
                last = layer == len(out.hidden_states) - 1
                p = head(state[0, -1] if last else norm(state[0, -1])).softmax(-1)
                final = out.logits[0, -1].softmax(-1)
                if last:
                    assert torch.allclose(p, final, atol=1e-6)
                assert read.truth[layer, column] == pytest.approx(float(p[probe.truth]), abs=1e-5)
                assert read.target[layer, column] == pytest.approx(float(p[probe.target]), abs=1e-5)
                assert read.entropy[layer, column] == pytest.approx(float(-(p * p.log()).sum()), abs=1e-4)
                assert read.cross_entropy[layer, column] == pytest.approx(-float(p[probe.truth].log()), abs=1e-3)
                kl = float((final * (final.log() - p.log())).sum())
                assert read.divergence[layer, column] == pytest.approx(kl, abs=1e-4)
                assert read.top_truth[layer, column] == (int(p.argmax()) == probe.truth)
    assert np.allclose(read.divergence[-1], 0)
    assert mean_curves(read)["truth"] == pytest.approx(read.truth.mean(1))


def test_logits_that_are_scaled_after_the_head_are_refused(tiny: Any, request_: Any) -> None:
    found, _ = probes(tiny, prompts(request_))
    plain = tiny.model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        out = plain(*args, **kwargs)
        out.logits = 30 * torch.tanh(out.logits / 30) * 0.5
        return out

    tiny.model.forward = scaled
    with pytest.raises(ModelError, match="off the model's own logits"):
        read_layers(tiny, found)
    with pytest.raises(InputError, match="no prompt"):
        read_layers(tiny, [])


def test_half_precision_is_read_in_float32(tiny: Any, request_: Any) -> None:
    found, _ = probes(tiny, prompts(request_))
    whole = read_layers(tiny, found)
    tiny.model.to(torch.bfloat16)
    half = read_layers(tiny, found)
    assert half.truth.shape == whole.truth.shape
    assert np.abs(half.truth[-1] - whole.truth[-1]).max() < 0.2


def test_prompts_that_tell_nothing_are_counted(tiny: Any) -> None:
    question = "Which colour does person0 like ?"
    rows = [
        ("same", question, "green grass", "green"),  # one first token
        ("apart", question, "red", "green"),
    ]
    found, skipped = probes(tiny, rows)
    assert [probe.id for probe in found] == ["apart"]
    assert skipped == 1


def layers(top_truth: list[list[int]], top_target: list[list[int]]) -> Layers:
    """Hand-made first choices; rows are layers 0 to 4, columns prompts."""
    truth, target = np.array(top_truth, bool), np.array(top_target, bool)
    zero = np.zeros(truth.shape)
    ids = [str(i) for i in range(truth.shape[1])]
    return Layers(zero, zero, zero, zero, zero, truth, target, ids)


def test_shares_by_hand() -> None:
    # prompt 0: answer in layers 1-2, flips at 3; prompt 1: answer in layer 1 only, flips at 4; prompt 2: never the answer,
    # target from layer 2; prompt 3: says something else though the answer stood in layer 3
    found = shares(layers(
        [[0, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]],
        [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0]],
    ))  # fmt: skip
    assert (found.n, found.said, found.internal, found.pretend) == (4, 3, 2, 1)
    assert found.mean_over_layers == pytest.approx(3 / 12)
    assert found.flip_depth == pytest.approx(np.mean([3 / 4, 1.0, 2 / 4]))


def test_the_last_layer_does_not_count_as_inside_and_nobody_said_is_no_number() -> None:
    found = shares(layers([[0], [0], [1]], [[0], [0], [0]]))
    assert (found.said, found.internal) == (0, 0)
    assert np.isnan(found.flip_depth)
    assert shares(layers([[0], [0], [1]], [[0], [0], [0]]), said=[True]).internal == 0
    with pytest.raises(InputError, match=r"\[1\]"):
        shares(layers([[0]], [[0]]), said=[True, False])
