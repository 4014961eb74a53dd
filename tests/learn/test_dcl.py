"""DCL: the four blocks, the factor that NT-Xent's gradient has and DCL's has not, the queue, two sides, and the traps."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import normalize

import efface
from efface.errors import InputError
from efface.learn.objective import Embedded
from efface.learn.objectives import clip_dcl as clip_dcl_file
from efface.learn.objectives import dcl as dcl_file
from efface.learn.objectives import moco_dcl as moco_dcl_file
from efface.learn.objectives.clip_dcl import clip_dcl
from efface.learn.objectives.dcl import coupling, dcl, dcl_losses, vmf_weights
from efface.learn.objectives.moco_dcl import moco_dcl
from efface.learn.objectives.nt_xent import nt_xent, nt_xent_losses
from efface.learn.run import learn
from efface.run.files import read_json

B, D, T = 12, 5, 0.1
IDS = torch.tensor([0, 1, 2, 0, 4, 5, 5, 7, 8, 0, 10, 11])  # rows 0, 3, 9 and rows 5, 6 are the same items
SMALL: dict[str, Any] = {
    "start": {"widths": (16, 8)}, "batch_size": 8, "epochs": 4, "learning_rate": 3e-3, "evaluations": 0,
}  # fmt: skip


def unit(seed: int, rows: int = B) -> Tensor:
    raw = torch.randn(rows, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalize(raw, dim=1)


def four_blocks(a: Tensor, b: Tensor, t: float, weights: Tensor | None = None) -> Tensor:
    """The specification's algorithm: four blocks, all diagonals deleted."""
    off = ~torch.eye(len(a), dtype=torch.bool)
    aa, ab, bb = (x @ y.T / t for x, y in ((a, a), (a, b), (b, b)))
    rows = [torch.cat([x[off].view(len(a), -1), y[off].view(len(a), -1)], 1) for x, y in ((aa, ab), (bb, ab.T))]
    positive = ab.diagonal() if weights is None else weights * ab.diagonal()
    return (-positive + (rows[0].logsumexp(1) + rows[1].logsumexp(1)) / 2).mean()


def grads(value: Tensor, *inputs: Tensor) -> list[Tensor]:
    return [value.detach(), *torch.autograd.grad(value, inputs)]


def same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-10) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.isfinite(one).all()
        assert float((one - other).abs().max()) < tolerance


@pytest.mark.parametrize("tile", [None, 5])
@pytest.mark.parametrize("sigma", [None, 0.5])
def test_the_four_blocks(sigma: float | None, tile: int | None) -> None:
    a, b = unit(0).requires_grad_(), unit(1).requires_grad_()
    weights = None if sigma is None else 2 - B * ((a * b).sum(1).detach() / sigma).softmax(0)
    same(grads(dcl(a, b, T, sigma=sigma, tile=tile), a, b), grads(four_blocks(a, b, T, weights), a, b))


@pytest.mark.parametrize("tile", [None, 5])
def test_ids_against_a_loop(tile: int | None) -> None:
    """Rows of the anchor's id, its positive included, stand in no denominator."""
    a, b = unit(2), unit(3)
    z, found = torch.cat([a, b]).tolist(), []
    for i in range(2 * B):
        s = [math.fsum(x * y for x, y in zip(z[i], row, strict=True)) / T for row in z]
        rest = [s[j] for j in range(2 * B) if IDS[j % B] != IDS[i % B]]
        found.append(math.log(math.fsum(map(math.exp, rest))) - s[(i + B) % (2 * B)])
    assert float(dcl(a, b, T, ids=IDS, tile=tile)) == pytest.approx(math.fsum(found) / (2 * B), abs=1e-12)
    assert abs(float(dcl(a, b, T, ids=IDS) - dcl(a, b, T))) > 1e-3


def test_nt_xent_is_dcl_with_the_positive_in_the_denominator() -> None:
    """L_NT = log(1 + exp(L_DCL)), anchor by anchor; so q = sigmoid(L_DCL) = 1 - probability of the positive."""
    a, b = unit(4), unit(5)
    nt, d = nt_xent_losses(a, b, a, b, 1 / T), dcl_losses(a, b, a, b, 1 / T)
    same([nt], [torch.nn.functional.softplus(d)], 1e-12)
    same([coupling(d)], [1 - (-nt).exp()], 1e-12)
    assert float(nt_xent(a, b, T)) > float(dcl(a, b, T))


@pytest.mark.parametrize("row", [0, 7])
def test_the_gradient_of_nt_xent_is_q_times_that_of_dcl(row: int) -> None:
    """One anchor is differentiated, everything else is constant."""
    a = unit(6)
    b = normalize(a + 0.6 * unit(7), dim=1)
    anchor = a[row].clone().requires_grad_()
    parts: Any = (anchor[None], b[row : row + 1], a, b, 1 / T)
    nt, d = nt_xent_losses(*parts, start=row)[0], dcl_losses(*parts, start=row)[0]
    q = coupling(d)
    (by_nt,), (by_d,) = torch.autograd.grad(nt, anchor), torch.autograd.grad(d, anchor)
    same([by_nt], [q * by_d], 1e-10)
    assert 0.02 < float(q) < 0.9
    assert float(by_d.abs().max()) > 1e-2


def test_weights_have_mean_one_no_gradient_and_the_limit_of_dcl() -> None:
    a, b = unit(8).requires_grad_(), unit(9)
    w = vmf_weights(a, b, 0.5)
    assert not w.requires_grad
    assert float(w.mean()) == pytest.approx(1, abs=1e-12)
    assert float(w.max()) < 2
    closeness = ((a * b).sum(1) / 0.5).exp()
    same([w], [(2 - closeness / closeness.mean()).detach()], 1e-12)
    same(grads(dcl(a, b, T, sigma=1e9), a), grads(dcl(a, b, T), a), 1e-6)
    closest = vmf_weights(a, b, 1e-3)
    assert float(closest.min()) == pytest.approx(2 - B, abs=1e-6)  # as the specification warns
    for sigma in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="sigma"):
            vmf_weights(a, b, sigma)


def pieces(a: Tensor, b: Tensor, rows: slice, ids: Tensor | None = IDS, **more: Any) -> Embedded:
    whole = rows == slice(0, len(a))
    first, second = (a, b) if whole else (a[rows], b[rows])
    scale = torch.tensor(1 / T, dtype=torch.float64)
    return Embedded(
        first, second, a, b, scale, start=rows.start, ids=None if ids is None else ids[rows], ids_all=ids, **more
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("which", ["dcl", "dclw", "moco-dcl", "clip-dcl"])
def test_three_processes_sum_to_one(which: str, masked: bool) -> None:
    """Also the weighted form: its softmax is over the positives of all processes."""
    file: Any = {"moco-dcl": moco_dcl_file, "clip-dcl": clip_dcl_file}.get(which, dcl_file)
    config = file.CONFIG(unique_ids=masked, **({"weighted": True, "sigma": 2.0} if which == "dclw" else {}))
    a, b = unit(10).requires_grad_(), unit(11).requires_grad_()
    queue, queue_ids = unit(12, 9), torch.arange(9)

    def run(rows: slice) -> Tensor:
        value, numbers = file.RECIPE.loss(pieces(a, b, rows, queue=queue, queue_ids=queue_ids), config)
        assert all(isinstance(number, float) for number in numbers.values())
        return value

    def gradients(value: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(value, (a, b), allow_unused=True)
        return [value.detach(), *(torch.zeros(()) if x is None else x for x in found)]

    whole = gradients(run(slice(0, B)))
    same(gradients(torch.stack([run(slice(0, 5)), run(slice(5, 9)), run(slice(9, B))]).sum()), whole, 1e-12)
    assert float(whole[1].abs().max()) > 1e-3
    direct = {
        "dcl": lambda ids: dcl(a, b, T, ids=ids), "dclw": lambda ids: dcl(a, b, T, sigma=2.0, ids=ids),
        "moco-dcl": lambda ids: moco_dcl(a, b, queue, T, ids=ids, queue_ids=None if ids is None else queue_ids),
        "clip-dcl": lambda ids: clip_dcl(a, b, T, ids=ids),
    }[which](IDS if masked else None)  # fmt: skip
    assert float(whole[0]) == pytest.approx(float(direct.detach()), abs=1e-12)


def test_a_small_sigma_that_pushes_pairs_apart_is_warned_of() -> None:
    batch = pieces(unit(13), unit(14), slice(0, B), None)
    with pytest.warns(UserWarning, match=r"8% of the pairs a negative weight.*raise sigma"):
        _, numbers = dcl_file.RECIPE.loss(batch, dcl_file.CONFIG(weighted=True, sigma=1e-3))  # type: ignore[misc]
    assert numbers["pushed_apart"] == pytest.approx(1 / B)
    assert numbers["least_weight"] == pytest.approx(2 - B)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dcl_file.RECIPE.loss(batch, dcl_file.CONFIG(weighted=True, sigma=10.0))  # type: ignore[misc]


@pytest.mark.parametrize("tile", [None, 4])
def test_the_queue_against_a_loop(tile: int | None) -> None:
    a, keys, queue, queue_ids = unit(15), unit(16), unit(17, 20), torch.arange(20)
    found = []
    for i in range(B):
        s = [float(a[i] @ key) / T for j, key in enumerate(queue) if j != int(IDS[i])]
        found.append(math.log(math.fsum(map(math.exp, s))) - float(a[i] @ keys[i]) / T)
    value = moco_dcl(a, keys, queue, T, ids=IDS, queue_ids=queue_ids, tile=tile)
    assert float(value) == pytest.approx(math.fsum(found) / B, abs=1e-12)


def test_keys_have_no_gradient_and_without_negatives_nothing_is_learnt() -> None:
    a, keys, queue = (unit(seed).requires_grad_() for seed in (18, 19, 20))
    by_a, by_keys, by_queue = torch.autograd.grad(moco_dcl(a, keys, queue, T), (a, keys, queue), allow_unused=True)
    assert float(by_a.abs().max()) > 1e-3
    assert by_keys is None
    assert by_queue is None
    mine = {"ids": torch.zeros(B, dtype=torch.int64), "queue_ids": torch.zeros(1, dtype=torch.int64)}
    for earlier, more in ((None, {}), (queue[:0], {}), (queue[:1], mine)):
        value = moco_dcl(a, keys, earlier, T, **more)
        assert float(value.detach()) == 0
        assert not torch.autograd.grad(value, a)[0].any()
    with pytest.raises(InputError, match="queue"):
        moco_dcl(a, keys, queue[:, :3], T)


@pytest.mark.parametrize("tile", [None, 4])
def test_two_sides_use_each_other_only(tile: int | None) -> None:
    """Off-diagonals of S12 and its transpose; the blocks within a side are not there."""
    a, b = unit(21).requires_grad_(), unit(22).requires_grad_()
    s = (a @ b.T / T).masked_fill(torch.eye(B, dtype=torch.bool), -math.inf)
    expected = ((s.logsumexp(1) + s.logsumexp(0)) / 2 - (a * b).sum(1) / T).mean()
    same(grads(clip_dcl(a, b, T, tile=tile), a, b), grads(expected, a, b))
    assert not clip_dcl_file.RECIPE.learns_scale  # a learnt temperature would run to its bound


# traps ------------------------------------------------------------------------------------------------------------------


def test_the_loss_may_be_negative() -> None:
    """Pairs that agree, items that do not: about -1 / T, and no bound at 0."""
    z = torch.eye(B, dtype=torch.float64)
    assert float(dcl(z, z, T)) == pytest.approx(math.log(2 * (B - 1)) - 1 / T)
    assert float(clip_dcl(z, z, 0.01)) < -95


def test_no_self_similarity_leaks_at_a_small_temperature() -> None:
    """An added -103 would let exp(100 - 103) into sums whose true terms are near exp(-100)."""
    z = torch.cat([torch.eye(2), -torch.eye(2)])[[0, 2]]  # two opposite items
    found = dcl(z, z, 0.01)
    assert float(found) == pytest.approx(math.log(2) - 200, abs=1e-3)
    assert dcl(unit(23).float(), unit(24).float(), 0.01) == pytest.approx(
        float(four_blocks(unit(23), unit(24), 0.01)), rel=1e-4
    )


def test_what_has_no_bound_or_no_negative_is_refused() -> None:
    z = unit(25)
    with pytest.raises(InputError, match="unit rows"):
        dcl(2 * z, z, T)
    for call in (lambda: dcl(z[:1], z[:1], T), lambda: clip_dcl(z[:1], z[:1], T)):
        with pytest.raises(InputError, match="2 rows or more"):
            call()
    one = torch.zeros(B, dtype=torch.int64)
    for call in (lambda: dcl(z, z, T, ids=one), lambda: clip_dcl(z, z, T, ids=one)):
        with pytest.raises(InputError, match="no candidate"):
            call()
    with pytest.raises(InputError, match="temperature"):
        dcl(z, z, 0.0)


# through the runner -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows() -> Dataset:
    """32 arrays in four clusters."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6))
    arrays = [(centres[i % 4] + 0.2 * rng.normal(size=6)).astype("float32").tolist() for i in range(32)]
    return Dataset.from_dict({"id": [str(i) for i in range(32)], "features": arrays})


@pytest.mark.parametrize("recipe", ["dcl", "moco-dcl"])
def test_recipes_run(recipe: str, rows: Dataset, tmp_path: Path) -> None:
    more: dict[str, Any] = {"weighted": True} if recipe == "dcl" else {"queue_size": 16, "momentum": 0.9}
    model = learn(recipe, rows, tmp_path / "model", **(SMALL | more))
    assert efface.load(tmp_path / "model").digest == model.digest
    losses = [loss for _, loss in read_json(tmp_path / "model" / "learn.json")["losses"]]
    assert all(map(math.isfinite, losses))
    if recipe == "dcl":
        assert losses[-1] < losses[0]


def test_pictures_and_texts_learn_to_find_each_other(tmp_path: Path) -> None:
    from PIL import Image as Pictures

    colours = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 50, 220), "white": (240, 240, 240)}
    names = [name for name in colours for _ in range(6)]
    rng = np.random.default_rng(1)
    pictures = [
        Pictures.fromarray(
            np.clip(np.array(colours[name]) + rng.integers(-20, 20, (16, 16, 3)), 0, 255).astype("uint8")
        )
        for name in names
    ]
    data = Dataset.from_dict({
        "id": [str(i) for i in range(24)], "image": pictures, "text": [f"a {name} square" for name in names],
    })  # fmt: skip
    start = {"width": 32, "depth": 1, "heads": 2, "image_size": 16, "patch": 8, "context": 8}
    model = learn(
        "clip-dcl", data, tmp_path / "model", start=start, batch_size=8, epochs=30, learning_rate=3e-3, unique_ids=True,
        unique_batches=True, evaluations=0,
    )  # fmt: skip
    found = model.image.embed(list(data["image"])) @ model.text.embed([f"a {name} square" for name in colours]).T
    truth = torch.tensor([list(colours).index(name) for name in names])
    assert float((found.argmax(1) == truth).float().mean()) > 0.9
    assert efface.load(tmp_path / "model").scale == pytest.approx(10)  # the fixed temperature went with the model


def test_a_killed_run_ends_with_the_same_bits(rows: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue and the moving copy are resumed."""
    from safetensors.torch import load_file

    from efface.learn import module

    class Killed(Exception):
        pass

    more: dict[str, Any] = SMALL | {"queue_size": 12, "momentum": 0.9, "checkpoint_seconds": 1e-9}
    learn("moco-dcl", rows, tmp_path / "whole", **more)
    original = module.Steps.on_step_end

    def killed(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        original(self, args, state, control, **rest)
        if state.global_step == 7:
            raise Killed

    monkeypatch.setattr(module.Steps, "on_step_end", killed)
    with pytest.raises(Killed):
        learn("moco-dcl", rows, tmp_path / "model", **more)
    monkeypatch.setattr(module.Steps, "on_step_end", original)
    learn("moco-dcl", rows, tmp_path / "model", **more)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "model"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
