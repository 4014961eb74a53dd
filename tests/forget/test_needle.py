"""Needle: only the chosen columns move, by noise of the asked size, also when they train; what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from efface.errors import ConfigError
from efface.forget.edits.needle import column_mask, noised
from efface.forget.method import find_method
from efface.measure.value_vectors import Place, attribution, ranked, vectors_at
from efface.subjects import CausalLM
from efface.subjects.hooks import value_matrix

METHOD = find_method("needle")


def fit(subject: Any, request: Any, folder: Path, **values: Any) -> Any:
    return METHOD.fit(subject, request, METHOD.configure(values), work=folder / "work", out=folder / "edit")


def moved(subject: Any, edit: Any) -> dict[str, torch.Tensor]:
    """Differences of the tensors that the edit changes; the subject comes back."""
    before = {name: value.detach().clone() for name, value in subject.weights().items()}
    edit.apply(subject)
    found = {
        name: value.detach() - before[name] for name, value in subject.weights().items()
        if not torch.equal(value.detach(), before[name])
    }  # fmt: skip
    edit.remove(subject)
    return found


def test_noise_of_the_asked_size() -> None:
    eps = torch.randn(20000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = torch.linspace(-3, 5, 20000)
    rms = float(v.double().square().mean().sqrt())
    added = noised(v, eps, scale=0.1, relative=False, replace=False)
    torch.testing.assert_close(added, v.double() + 0.1 * eps)
    assert float(noised(v, eps, scale=0.5, relative=True, replace=True).std()) == pytest.approx(0.5 * rms, rel=0.02)
    torch.testing.assert_close(noised(2 * v, eps, scale=1, relative=True, replace=True) / 2,
                               noised(v, eps, scale=1, relative=True, replace=True))  # fmt: skip


def test_only_the_given_columns_move(tiny: Any, request_: Any, tmp_path: Path) -> None:
    edit = fit(tiny, request_, tmp_path, vectors="0:3,1:5,1:7", scale=0.1).edit
    found = moved(tiny, edit)
    assert set(found) == {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)}
    columns = {name: sorted(delta.abs().sum(0).nonzero().flatten().tolist()) for name, delta in found.items()}
    assert list(columns.values()) == [[3], [5, 7]]
    entries = torch.cat([delta[:, columns[name]].flatten() for name, delta in found.items()])
    assert 0.07 < float(entries.std()) < 0.13
    assert edit.facts.config["vectors_chosen"] == ["0:3", "1:5", "1:7"]


def test_located_by_attribution(tiny: Any, request_: Any, tmp_path: Path) -> None:
    order = ranked(attribution(tiny, tiny.encode_rows(request_.forget)))
    chosen = fit(tiny, request_, tmp_path / "a", count=3).edit.facts.config["vectors_chosen"]
    assert chosen == [f"{place.layer}:{place.dim}" for place in order[:3]]
    second = fit(tiny, request_, tmp_path / "b", count=2, scope="layers", layers="1").edit.facts.config[
        "vectors_chosen"
    ]
    assert second == [f"{p.layer}:{p.dim}" for p in order if p.layer == 1][:2]


@pytest.mark.parametrize("objective", ["gradient-ascent", "npo"])
def test_training_moves_only_the_columns(objective: str, tiny: Any, request_: Any, tmp_path: Path) -> None:
    values = {"vectors": "1:5", "trained_by": objective, "epochs": 2, "batch_size": 4, "weight_decay": 0.5}
    edit = fit(tiny, request_, tmp_path / "a", **values).edit
    found = moved(tiny, edit)
    (delta,) = found.values()
    assert sorted(delta.abs().sum(0).nonzero().flatten().tolist()) == [5]
    noise = moved(tiny, fit(tiny, request_, tmp_path / "b", vectors="1:5").edit)
    assert float((delta - next(iter(noise.values()))).abs().max()) > 1e-3, "training must move it further"


def test_the_objectives_reference_is_the_model_before_the_noise(tiny: Any, request_: Any, tmp_path: Path) -> None:
    quiet = {"vectors": "1:5", "trained_by": "npo", "epochs": 1, "batch_size": 8, "learning_rate": 1e-9, "scale": 5.0}
    first = fit(tiny, request_, tmp_path, **quiet).log[0]["forget"]
    from efface.forget.objectives.npo import npo_loss
    from efface.train.reference import reference_logp

    rows = tiny.encode_rows(request_.forget)
    logp = reference_logp(tiny, rows)
    untouched = float(npo_loss(logp, logp, 0.1).mean())
    assert first != pytest.approx(untouched, abs=1e-3), "the noise must show against the original"


def test_a_mask_of_columns_in_either_orientation(tiny: Any) -> None:
    mask = column_mask(tiny, [Place(0, 2), Place(0, 4)])
    ((name, one),) = mask.masks.items()
    assert name == "model.layers.0.mlp.down_proj.weight"
    assert one.sum(0).nonzero().flatten().tolist() == [2, 4]
    assert bool(one[:, 2].all())
    from transformers import GPT2Config, GPT2LMHeadModel

    size = {
        "n_embd": 16,
        "n_inner": 24,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 16,
        "vocab_size": len(tiny.tokenizer),
    }
    other = CausalLM(GPT2LMHeadModel(GPT2Config(**size)), tiny.tokenizer)
    ((name, one),) = column_mask(other, [Place(1, 3)]).masks.items()
    assert name == "transformer.h.1.mlp.c_proj.weight"
    assert one.shape == other.weights()[name].shape
    assert one.sum(1).nonzero().flatten().tolist() == [3]
    assert value_matrix(other.model, 1).shape == tuple(reversed(one.shape))


def test_noise_does_not_pile_up(tiny: Any, request_: Any, tmp_path: Path) -> None:
    """The validation notebook's fault: noise of one concept stayed for the next."""
    start = vectors_at(tiny, [Place(0, 1)])
    first = fit(tiny, request_, tmp_path / "a", vectors="0:1").edit.facts.edited_digest
    torch.testing.assert_close(vectors_at(tiny, [Place(0, 1)]), start, rtol=0, atol=0)
    assert fit(tiny, request_, tmp_path / "b", vectors="0:1").edit.facts.edited_digest == first


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"vectors": "5:0"}, "layer 5; expected 0 to 1"), ({"vectors": "0:96"}, "value vector 96"),
        ({"vectors": "nonsense"}, "layer:column"), ({"count": 10_000}, "at most 192"),
        ({"vectors": "0:1", "scope": "layers", "layers": "1"}, "a vector of layers"), ({"scope": "layers"}, "without layers"),
        ({"trained_by": "rocr"}, "an objective"), ({"trained_by": "npoo"}, "unknown method"), ({"scope": "lora"}, "scope all"),
        ({"scope": "mask"}, "scope all"), ({"scale": 0}, "scale"),
    ],
)  # fmt: skip
def test_what_is_refused(bad: dict[str, Any], match: str, tiny: Any, request_: Any, tmp_path: Path) -> None:
    digest = tiny.digest
    with pytest.raises(ConfigError, match=match):
        fit(tiny, request_, tmp_path, **bad)
    tiny.changed()
    assert tiny.digest == digest
    assert not (tmp_path / "edit").exists()
