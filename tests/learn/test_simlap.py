"""SimLAP: the gated cosine against the naive form, the gate, the masks, its traps, and runs of every variant."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import normalize

from efface.errors import ConfigError, InputError, ModelError, RequestError
from efface.learn.objectives.sup_nt_xent import sup_nt_xent
from efface.learn.recipes.simlap import SimLAPConfig, head, pair_masks, target_classes
from efface.learn.recipes.simlap_gate import PairGate, gate_entropy, load_gate, save_gate
from efface.learn.run import learn
from efface.numerics.gated_contrast import gated_cosine, pair_losses
from efface.numerics.mixing import seeded

B, M, D = 6, 9, 5


def rows(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(z: Tensor, k: Tensor, gates: Tensor) -> Tensor:
    """The keys once for each anchor, [B, M, D]."""
    a, b = z * gates, k[None] * gates[:, None]
    return torch.einsum("bd,bmd->bm", a, b) / (a.norm(dim=1)[:, None] * b.norm(dim=2))


def test_three_products_equal_the_naive_form_in_value_and_gradient() -> None:
    inputs = [rows(0, B, D), rows(1, M, D), torch.sigmoid(rows(2, B, D))]
    for tensor in inputs:
        tensor.requires_grad_()
    weights = rows(3, B, M)
    found, expected = gated_cosine(*inputs), naive(*inputs)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    for one, other in zip(*(torch.autograd.grad((x * weights).sum(), inputs) for x in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=0)
    with pytest.raises(InputError, match="one D"):
        gated_cosine(inputs[0], inputs[1], inputs[2][:2])


def test_an_open_gate_is_the_cosine_and_identical_pairs_are_the_supervised_loss() -> None:
    z = rows(0, B, D)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    open_gate = gated_cosine(z, z, torch.ones_like(z))
    torch.testing.assert_close(open_gate, normalize(z, dim=1) @ normalize(z, dim=1).T)
    positive, negative = pair_masks(labels, labels, labels)
    positive = positive & ~torch.eye(B, dtype=torch.bool)
    found = pair_losses(open_gate / 0.2, positive, negative).sum() / positive.sum()
    assert float(found) == pytest.approx(float(sup_nt_xent(normalize(z, dim=1), labels, 0.2)), abs=1e-12)


def test_closed_gates_give_no_quotient_of_zeros() -> None:
    z = rows(0, B, D).requires_grad_()
    gates = torch.full((B, D), 1e-9, dtype=torch.float64)
    found = gated_cosine(z, rows(1, M, D), gates)
    assert torch.isfinite(found).all()
    assert torch.isfinite(torch.autograd.grad(found.sum(), z)[0]).all()


def test_losses_against_loops_at_a_temperature_where_exponentials_overflow() -> None:
    s = 2 * torch.rand(B, M, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    labels, wanted = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([1, 1, 0, 2, 0, 1])
    keys = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 3])
    positive, negative = pair_masks(labels, wanted, keys)
    for t in (0.1, 0.0005):
        expected = []
        for i in range(B):
            total = 0.0
            for m in range(M):
                if keys[m] == wanted[i]:
                    rest = [s[i, n] / t for n in range(M) if keys[n] not in (labels[i], wanted[i])]
                    total += float(torch.logsumexp(torch.stack([s[i, m] / t, *rest]), 0) - s[i, m] / t)
            expected.append(total)
        found = pair_losses(s / t, positive, negative)
        assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert not positive[0, [0, 4]].any()
    assert not negative[0, [0, 4]].any(), "the anchor's own class is neither, unless it is the target"
    assert bool(positive[1, 1])


def test_too_few_classes_are_refused() -> None:
    two = torch.tensor([0, 0, 1, 1])
    for pairs in ("arbitrary", "distinct"):
        with pytest.raises(InputError, match=r"2 classes; expected 3 classes"):
            target_classes(two, pairs, seeded(0, 0))  # type: ignore[arg-type]
    assert torch.equal(target_classes(two, "identical", seeded(0, 0)), two)
    with pytest.raises(InputError, match="1 classes"):
        target_classes(two[:2], "identical", seeded(0, 0))
    every = torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(InputError, match="no negatives"):
        pair_losses(torch.zeros(1, 3), every, ~every)


def test_target_classes_are_in_the_batch() -> None:
    labels = torch.tensor([3, 17, 900, 3, 17, 5, 900, 900])
    arbitrary = torch.stack([target_classes(labels, "arbitrary", seeded(0, step)) for step in range(300)])
    assert (arbitrary.sort(1)[0] == labels.sort()[0]).all(), "a permutation"
    assert bool((arbitrary == labels).any())
    distinct = torch.stack([target_classes(labels, "distinct", seeded(0, step)) for step in range(300)])
    assert not (distinct == labels).any()
    for place, own in enumerate(labels.tolist()):
        counts = [int((distinct[:, place] == other).sum()) for other in {3, 5, 17, 900} - {own}]
        assert min(counts) > 60, "every other class about as often"
    assert torch.equal(distinct[7], target_classes(labels, "distinct", seeded(0, 7)))


@pytest.mark.parametrize("fused", [True, False])
def test_the_gate_is_symmetric_lies_between_0_and_1_and_differs_between_pairs(fused: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    gate = PairGate(4, 8, 12, D, fused=fused)
    a, b = torch.tensor([0, 1, 2, 3, 1]), torch.tensor([1, 2, 2, 0, 0])
    gate(a, b)  # running statistics
    gate.eval()
    torch.testing.assert_close(gate(a, b), gate(b, a))
    pairs, gates = gate.every()
    assert pairs.tolist() == [[i, j] for i in range(4) for j in range(i, 4)]
    assert 0 < float(gates.min()) < float(gates.max()) < 1
    assert float(gates.std(0).min()) > 1e-3
    save_gate(gate, ["ant", "bee", "cat", "dog"], tmp_path)
    stored = load_gate(tmp_path)
    torch.testing.assert_close(stored.between("cat", "ant"), gate(a[:1] * 0, a[:1] * 0 + 2)[0])
    with pytest.raises(InputError, match="no gate for the class 'cow'"):
        stored.between("cow", "ant")
    with pytest.raises(InputError, match="has no gate"):
        gate(torch.tensor([4]), torch.tensor([0]))
    with pytest.raises(InputError, match="integers"):
        gate(torch.tensor([0.0]), torch.tensor([0.0]))
    with pytest.raises(ModelError, match="no gate in"):
        load_gate(tmp_path / "gate")


def test_looking_at_all_gates_leaves_the_running_statistics_alone() -> None:
    gate = PairGate(4, 8, 12, D).train()
    before = {name: tensor.clone() for name, tensor in gate.state_dict().items()}
    gate.every()
    assert gate.training
    assert all(torch.equal(before[name], tensor) for name, tensor in gate.state_dict().items())


def test_entropy_of_gates() -> None:
    g = torch.tensor([0.0, 0.5, 1.0, 0.25])
    expected = [0, math.log(2), 0, -0.25 * math.log(0.25) - 0.75 * math.log(0.75)]
    assert gate_entropy(g).tolist() == pytest.approx(expected)


def test_the_head_ends_in_a_layer_norm() -> None:
    z = head(4, 8, 6, 3)(torch.randn(10, 4, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(z.mean(1), torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(1, correction=0), torch.ones(10), atol=1e-2, rtol=0)


# runs ------------------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "start": {"widths": (16, 8)}, "feature_views": {"corrupt": 0.1}, "batch_size": 16, "epochs": 3, "evaluations": 0,
    "learning_rate": 1e-2, "width": 8, "hidden": 16, "label_width": 8, "gate_hidden": 16,
}  # fmt: skip


def arrays(n: int = 48, classes: int = 4) -> Dataset:
    rng = np.random.default_rng(0)
    label = np.arange(n) % classes
    features = rng.normal(size=(n, 6)) + 3 * np.eye(classes, 6)[label]
    return Dataset.from_dict({
        "id": [str(i) for i in range(n)], "features": features.astype("float32").tolist(), "label": label.tolist(),
    })  # fmt: skip


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one view": {"form": "one-view", "pairs": "distinct"},
    "momentum": {"form": "momentum", "layers": 3, "instance_weight": 0.5, "key_momentum": 0.9},
    "head": {"class_weight": 1.0, "sup_loss": True, "gate_entropy": 0.1, "fused": False},
    "open": {"gate": "open", "pairs": "identical"},
    "chunks": {"chunk": 5},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_lowers_its_loss(name: str, tmp_path: Path) -> None:
    from efface.run.files import read_json

    model = learn("simlap", arrays(), tmp_path / "model", **(SMALL | {"epochs": 8} | VARIANTS[name]))
    losses = [loss for _, loss in read_json(tmp_path / "model" / "learn.json")["losses"]]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert model.kind == "encoder"
    assert (tmp_path / "model" / "gate").exists() == (name != "open")
    if name == "plain":
        gate = load_gate(tmp_path / "model")
        torch.testing.assert_close(gate.between("0", "3"), gate.between("3", "0"))


def test_chunks_train_what_the_whole_batch_trains(tmp_path: Path) -> None:
    whole, parts = (learn("simlap", arrays(), tmp_path / str(chunk), chunk=chunk, **SMALL) for chunk in (None, 5))
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_labels_that_cannot_be_used(tmp_path: Path) -> None:
    bare = arrays().remove_columns("label")
    with pytest.raises(RequestError, match="label"):
        learn("simlap", bare, tmp_path / "model", **SMALL)
    with pytest.raises(RequestError, match="-1"):
        learn("simlap", bare.add_column("label", [-1, *range(47)]), tmp_path / "model", **SMALL)
    with pytest.raises(InputError, match="2 classes"):
        learn("simlap", arrays(classes=2), tmp_path / "model", **SMALL)
    singles = bare.add_column("label", list(range(48)))
    with pytest.raises(InputError, match="no positive pair"):
        learn("simlap", singles, tmp_path / "model", form="one-view", pairs="identical", **SMALL)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tile": 8}, "no tiles"), ({"projector": 8}, "head of its own"),
        ({"form": "one-view", "instance_weight": 1.0}, "two views"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_served(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SimLAPConfig.parse(values)


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    from efface.learn import module

    more: dict[str, Any] = SMALL | {"checkpoint_seconds": 1e-9, "form": "momentum"}
    learn("simlap", arrays(), tmp_path / "whole", **more)

    class Killed(Exception):
        pass

    original = module.Steps.on_step_end

    def killed(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        original(self, args, state, control, **rest)
        if state.global_step == 4:
            raise Killed

    monkeypatch.setattr(module.Steps, "on_step_end", killed)
    with pytest.raises(Killed):
        learn("simlap", arrays(), tmp_path / "model", **more)
    monkeypatch.setattr(module.Steps, "on_step_end", original)
    learn("simlap", arrays(), tmp_path / "model", **more)
    for place in ("model.safetensors", "gate/model.safetensors"):
        whole, resumed = (load_file(tmp_path / name / place) for name in ("whole", "model"))
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
