"""CACR against loops, its limits, the signs of its gradients, the queue, the form on MoCo v3, and the traps by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import efface
from efface.errors import ConfigError, InputError
from efface.learn.objective import Embedded
from efface.learn.objectives import cacr as cacr_file
from efface.learn.objectives import cacr_moco as cacr_moco_file
from efface.learn.objectives.cacr import attraction, cacr, distances, repulsion, repulsion_rows, weighed
from efface.learn.objectives.cacr_moco import cacr_queue_losses
from efface.learn.recipes.cacr_moco_v3 import rbf_losses
from efface.learn.run import learn
from efface.numerics.masks import Shifted
from efface.run.files import read_json

V, B, D = 3, 8, 5
IDS = torch.tensor([0, 1, 2, 0, 4, 5, 5, 7])
SMALL: dict[str, Any] = {
    "start": {"widths": (16, 8)}, "batch_size": 8, "epochs": 4, "learning_rate": 3e-3, "n_views": 3,
    "evaluations": 0,
}  # fmt: skip


def unit(seed: int, views: int = V, rows: int = B) -> Tensor:
    raw = torch.randn(views, rows, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalize(raw, dim=-1)


def softmean(d: list[float], t: float) -> float:
    """sum_k w_k d_k with w = softmax(t d)."""
    e = [math.exp(t * x) for x in d]
    return math.fsum(x * y for x, y in zip(e, d, strict=True)) / math.fsum(e)


def far(a: Tensor, b: Tensor) -> float:
    return math.dist(a.tolist(), b.tolist()) ** 2


def slow(z: Tensor, t_pos: float, t_neg: float, tau_plus: float | None, ids: list[int]) -> tuple[float, float]:
    """Attraction and repulsion in plain loops, as the specification's in-batch algorithm has them."""
    count, pull, push = len(z), [], []
    for v in range(count):
        for i in range(B):
            pull.append(softmean([far(z[v, i], z[u, i]) for u in range(count) if u != v], t_pos))
            for u in range(v + 1, count):
                r = -softmean([far(z[v, i], z[u, j]) for j in range(B) if ids[j] != ids[i]], -t_neg)
                push.append(r if tau_plus is None else (r + tau_plus * far(z[v, i], z[u, i])) / (1 - tau_plus))
    return math.fsum(pull) / len(pull), math.fsum(push) / len(push)


@pytest.mark.parametrize("tau_plus", [None, 0.1])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("views", [2, 4])
def test_against_loops(views: int, masked: bool, tau_plus: float | None) -> None:
    z, ids = unit(0, views), IDS if masked else torch.arange(B)
    pull, push = slow(z, 1.0, 2.0, tau_plus, ids.tolist())
    for tile in (None, 3):
        for detach in (False, True):
            found = cacr(
                z, t_pos=1.0, t_neg=2.0, alpha=0.7, beta=1.3, detach_weights=detach, tau_plus=tau_plus,
                ids=IDS if masked else None, tile=tile,
            )  # fmt: skip
            assert float(found) == pytest.approx(0.7 * pull + 1.3 * push, abs=1e-12)


# limits -------------------------------------------------------------------------------------------------------------------


def test_one_positive_is_its_mean_distance_whatever_t_pos() -> None:
    z = unit(1, 2)
    mean = float((z[0] - z[1]).square().sum(1).mean())
    for t in (0.0, 1.0, 7.0):
        found = attraction(distances(z.unbind(0)), t)
        assert found.shape == (B, 2)
        assert float(found.mean()) == pytest.approx(mean, abs=1e-12)


def test_t_of_zero_is_the_ablation_without_weights() -> None:
    z = unit(2)
    pairs = [(v, u) for v in range(V) for u in range(V) if v != u]
    pull = math.fsum(far(z[v, i], z[u, i]) for v, u in pairs for i in range(B)) / (len(pairs) * B)
    forward = [(v, u) for v, u in pairs if v < u]
    push = -math.fsum(far(z[v, i], z[u, j]) for v, u in forward for i in range(B) for j in range(B) if i != j)
    push /= len(forward) * B * (B - 1)
    assert float(cacr(z, t_pos=0.0, t_neg=0.0)) == pytest.approx(pull + push, abs=1e-12)


def test_equal_distances_give_equal_weights() -> None:
    """Items along the axes: every negative lies at 2, so that nothing depends on t, and each gets the same push."""
    z = torch.eye(B, dtype=torch.float64)
    values = [float(repulsion((z, z), (z, z), t).mean()) for t in (0.0, 2.0, 50.0)]
    assert values == pytest.approx([-2.0] * 3, abs=1e-12)
    candidates = z.clone().requires_grad_()
    repulsion_rows(z[:1], candidates, Shifted(0), 50.0).sum().backward()
    torch.testing.assert_close(candidates.grad[1:, 0], torch.full((B - 1,), 2 / (B - 1), dtype=torch.float64))
    assert float(candidates.grad[0].abs().max()) == 0  # its own row is no negative


def test_the_nearest_negative_is_pushed_hardest_and_the_farthest_positive_pulled_hardest() -> None:
    d = torch.tensor([[0.5, 1.0, 3.0]], dtype=torch.float64, requires_grad=True)
    none = torch.zeros(1, 3, dtype=torch.bool)
    (pull,) = torch.autograd.grad(weighed(d, none, 1.0, True).sum(), d)
    (push,) = torch.autograd.grad(-weighed(d, none, -2.0, True).sum(), d)
    assert bool((pull.diff() > 0).all())
    assert bool((push.diff() > 0).all())  # the nearest has the most negative gradient: its distance must grow
    assert bool((pull > 0).all())
    assert bool((push < 0).all())
    torch.testing.assert_close(pull, d.detach().softmax(1))
    torch.testing.assert_close(push, -(-2 * d.detach()).softmax(1))


@pytest.mark.parametrize("tile", [None, 3])
def test_gradients(tile: int | None) -> None:
    """With gradient through the weights by finite differences; without, those of constant weights."""
    raw = torch.randn(V, 4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True)

    def value(x: Tensor, detach: bool) -> Tensor:
        return cacr(normalize(x, dim=-1), t_neg=0.9, tau_plus=0.1, detach_weights=detach, tile=tile)

    assert torch.autograd.gradcheck(lambda x: value(x, False), (raw,))
    z = normalize(raw.detach(), dim=-1).requires_grad_()
    d = distances(z.unbind(0))
    own = torch.eye(V, dtype=torch.bool)
    pull = (d.detach().masked_fill(own, -math.inf).softmax(-1) * d).sum(-1).mean()
    push = []
    for v in range(V):
        for u in range(v + 1, V):
            far = 2 - 2 * z[v] @ z[u].T
            weights = (-0.9 * far.detach()).masked_fill(torch.eye(4, dtype=torch.bool), -math.inf).softmax(1)
            push.append((0.1 * far.diagonal() - (weights * far).sum(1)).mean() / 0.9)
    (expected,) = torch.autograd.grad(pull + torch.stack(push).mean(), z)
    (found,) = torch.autograd.grad(cacr(z, t_neg=0.9, tau_plus=0.1, tile=tile), z)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    (through,) = torch.autograd.grad(cacr(z, t_neg=0.9, tau_plus=0.1, detach_weights=False, tile=tile), z)
    assert float((through - expected).abs().max()) > 1e-3


def test_repulsion_is_the_relative_penalty_of_info_nce_at_a_temperature_of_half_of_one_over_t_neg() -> None:
    """With detached weights, the gradient is that of log-sum-exp at T = 1 / (2 t_neg), divided by t_neg."""
    z = unit(4, 2).requires_grad_()
    t = 2.0
    s = (2 * t * z[0] @ z[1].T).masked_fill(torch.eye(B, dtype=torch.bool), -math.inf)
    (expected,) = torch.autograd.grad(s.logsumexp(1).mean() / t, z)
    (found,) = torch.autograd.grad(repulsion(z.unbind(0), z.unbind(0), t).mean(), z)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


# the queue ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_the_queue_and_the_batch_share_one_softmax(masked: bool) -> None:
    z, queue, queue_ids = unit(5), unit(6, 1, 6)[0], torch.tensor([0, 1, 2, 50, 51, 52])
    ids = IDS if masked else torch.arange(B)
    more = {"ids": IDS, "ids_all": IDS, "queue_ids": queue_ids} if masked else {}
    for tile in (None, 3):
        pull, push = cacr_queue_losses(z[0], list(z[1:]), z[0], queue, t_neg=2.0, tau_plus=0.2, tile=tile, **more)
        for i in range(B):
            d = [far(z[0, i], z[u, i]) for u in range(1, V)]
            negatives = [far(z[0, i], z[0, j]) for j in range(B) if ids[j] != ids[i]]
            negatives += [far(z[0, i], key) for key, name in zip(queue, queue_ids, strict=True)
                          if not masked or int(name) != int(IDS[i])]  # fmt: skip
            assert float(pull[i]) == pytest.approx(softmean(d, 1.0), abs=1e-12)
            expected = (-softmean(negatives, -2.0) + 0.2 * math.fsum(d) / len(d)) / 0.8
            assert float(push[i]) == pytest.approx(expected, abs=1e-12)


def test_keys_and_queue_have_no_gradient_and_the_batch_alone_will_do() -> None:
    z, queue = unit(7).requires_grad_(), unit(8, 1)[0].requires_grad_()
    pull, push = cacr_queue_losses(z[0], [z[1], z[2]], z[0], queue)
    by_z, by_queue = torch.autograd.grad((pull + push).sum(), (z, queue), allow_unused=True)
    assert by_queue is None
    assert not by_z[1:].any()
    assert float(by_z[0].abs().max()) > 1e-2
    alone = cacr_queue_losses(z[0], [z[1]], z[0], None)[1]
    torch.testing.assert_close(alone, repulsion_rows(z[0], z[0], Shifted(0), 2.0))
    with pytest.raises(InputError, match="queue"):
        cacr_queue_losses(z[0], [z[1]], z[0], queue[:, :2])
    with pytest.raises(InputError, match="one or more"):
        cacr_queue_losses(z[0], [], z[0], queue)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("file", [cacr_file, cacr_moco_file], ids=lambda file: file.CARD.name)
def test_three_processes_sum_to_one(file: Any, masked: bool) -> None:
    z = unit(9).requires_grad_()
    everyone, queue, queue_ids = tuple(z.unbind(0)), unit(10, 1)[0], torch.arange(B)
    config = file.CONFIG(unique_ids=masked, n_views=V, tau_plus=0.1, detach_weights=False)

    def run(rows: slice) -> list[Tensor]:
        mine = everyone if rows == slice(0, B) else tuple(view[rows] for view in everyone)
        batch = Embedded(
            mine[0], mine[1], everyone[0], everyone[1], torch.tensor(1.0, dtype=torch.float64), start=rows.start, views=mine,
            views_all=everyone, ids=IDS[rows], ids_all=IDS, queue=queue, queue_ids=queue_ids,
        )  # fmt: skip
        value, numbers = file.RECIPE.loss(batch, config)
        assert numbers["attraction"] > 0 > numbers["repulsion"]
        return [value.detach(), *torch.autograd.grad(value, z)]

    whole = run(slice(0, B))
    parts = [run(rows) for rows in (slice(0, 3), slice(3, 4), slice(4, B))]
    for place, expected in enumerate(whole):
        torch.testing.assert_close(sum(part[place] for part in parts), expected, atol=1e-12, rtol=0)
    if file is cacr_file:
        direct = cacr(z, tau_plus=0.1, detach_weights=False, ids=IDS if masked else None)
        assert float(whole[0]) == pytest.approx(float(direct.detach()), abs=1e-12)


# on MoCo v3 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.2, 1.0])
def test_the_rbf_form_is_weighted_cross_entropy(t: float) -> None:
    """2 T sum_k mean_i p_k CE_i(q_k K^T / T), the positive in the denominator, p without gradient and summing to 1."""
    z = unit(11, 4).requires_grad_()
    queries, keys = z[1:], z[0]
    found, shares = rbf_losses(list(queries), keys, keys, t)
    p = ((queries - keys).square().sum(-1).detach() / t).softmax(0)
    torch.testing.assert_close(shares, p)
    torch.testing.assert_close(shares.sum(0), torch.ones(B, dtype=torch.float64))
    frozen, place = keys.detach(), torch.arange(B)
    expected = 2 * t * sum(
        p[k] * cross_entropy(queries[k] @ frozen.T / t, place, reduction="none") for k in range(3)
    )  # fmt: skip
    by_z, should = (torch.autograd.grad(x.mean(), z, retain_graph=True)[0] for x in (found, expected))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(by_z, should)
    assert not by_z[0].any()  # keys are constants


def test_more_views_do_not_make_the_rbf_form_larger() -> None:
    """The same query three times weighs as much as once."""
    q, k = unit(12, 2)
    once, thrice = (rbf_losses([q] * count, k, k, 0.5)[0] for count in (1, 3))
    torch.testing.assert_close(once, thrice)


# traps --------------------------------------------------------------------------------------------------------------------


def test_without_detaching_a_far_negative_is_pulled_in() -> None:
    """d R / d d_j = -w_j (1 - t (d_j - mean)): the sign turns more than 1 / t beyond the weighted mean."""
    d = torch.tensor([[0.2, 0.4, 3.5]], dtype=torch.float64, requires_grad=True)
    none = torch.zeros(1, 3, dtype=torch.bool)
    (through,) = torch.autograd.grad(-weighed(d, none, -2.0, False).sum(), d)
    w = (-2 * d.detach()).softmax(1)
    torch.testing.assert_close(through, -w * (1 - 2 * (d.detach() - (w * d.detach()).sum())))
    assert float(through[0, 2]) > 0  # its distance should shrink
    (detached,) = torch.autograd.grad(-weighed(d, none, -2.0, True).sum(), d)
    assert bool((detached < 0).all())


def test_equal_vectors_have_a_finite_gradient() -> None:
    z = unit(13)[:1].expand(V, B, D).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cacr(z), z)
    assert bool(torch.isfinite(gradient).all())
    z = torch.ones(V, B, D) / math.sqrt(D)
    (gradient,) = torch.autograd.grad(cacr(z.requires_grad_()), z)
    assert bool(torch.isfinite(gradient).all())


def test_the_debiasing_pulls_the_pair_together() -> None:
    """The released sign would push it apart."""
    z = unit(14, 2).requires_grad_()

    def by_pairs(tau_plus: float | None) -> Tensor:
        (gradient,) = torch.autograd.grad(repulsion(z.unbind(0), z.unbind(0), 2.0, tau_plus=tau_plus).sum(), z)
        return gradient

    plain = by_pairs(None)
    corrected = by_pairs(0.1)
    # (R + tau d) / (1 - tau): what is left beside R / (1 - tau) is the gradient of tau d / (1 - tau), towards the other view
    rest = corrected - plain / 0.9
    torch.testing.assert_close(rest[0], -2 * 0.1 / 0.9 * z[1].detach())
    assert bool(((rest[0] * z[1].detach()).sum(1) < 0).all())


def test_one_view_one_item_and_no_negative_are_refused() -> None:
    z = unit(15)
    with pytest.raises(InputError, match="two or more"):
        cacr(z[:1])
    with pytest.raises(InputError, match="2 rows or more"):
        cacr(z[:, :1])
    with pytest.raises(InputError, match="no negative"):
        cacr(z, ids=torch.zeros(B, dtype=torch.int64))
    with pytest.raises(InputError, match="unit rows"):
        cacr(2 * z)
    for more in ({"t_neg": -1.0}, {"t_pos": math.nan}):
        with pytest.raises(InputError, match="t_"):
            cacr(z, **more)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="n_views"):
        cacr_file.CONFIG.parse({"n_views": 1})


def test_autocast_computes_in_float32() -> None:
    z = unit(16).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = float(cacr(z))
    assert inside == pytest.approx(float(cacr(z)), rel=1e-6)


# through the runner ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows() -> Dataset:
    """32 arrays in four clusters."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6))
    arrays = [(centres[i % 4] + 0.2 * rng.normal(size=6)).astype("float32").tolist() for i in range(32)]
    return Dataset.from_dict({"id": [str(i) for i in range(32)], "features": arrays})


MORE: dict[str, dict[str, Any]] = {
    "cacr": {}, "cacr-moco": {"queue_size": 12, "momentum": 0.9}, "cacr-moco-v3": {"predictor": 8, "projector": 8},
}  # fmt: skip


@pytest.mark.parametrize("recipe", list(MORE))
def test_recipes_run(recipe: str, rows: Dataset, tmp_path: Path) -> None:
    model = learn(recipe, rows, tmp_path / "model", **(SMALL | MORE[recipe]))
    assert efface.load(tmp_path / "model").digest == model.digest
    losses = [loss for _, loss in read_json(tmp_path / "model" / "learn.json")["losses"]]
    assert all(map(math.isfinite, losses))
    if recipe == "cacr":
        assert losses[-1] < losses[0]


def test_the_moving_copy_follows_and_keys_are_among_the_views(rows: Dataset, tmp_path: Path) -> None:
    from efface.learn.contrastive import fit, start_model
    from efface.learn.recipes import cacr_moco_v3 as file

    config = file.CONFIG.parse(SMALL | {"momentum": 0.5, "keys": 3})
    subject = start_model(file.RECIPE, config, rows)
    before = [parameter.detach().clone() for parameter in subject.model.parameters()]
    module: Any = fit(file.RECIPE, subject, rows, config, work=tmp_path / "work").module
    assert int(module.ema.step) == 16
    now_all = [parameter.detach() for parameter in subject.model.parameters()]
    for start, copy, now in zip(before, module.ema.module[0].parameters(), now_all, strict=True):
        assert not torch.equal(copy, start)
        assert not copy.requires_grad
        assert float((copy - now).abs().max()) <= float((start - now).abs().max())
    with pytest.raises(ConfigError, match="keys is at most n_views"):
        file.CONFIG.parse({"n_views": 2, "keys": 3})


@pytest.mark.parametrize("recipe", ["cacr-moco", "cacr-moco-v3"])
def test_a_killed_run_ends_with_the_same_bits(
    recipe: str, rows: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    from efface.learn import module

    class Killed(Exception):
        pass

    more: dict[str, Any] = SMALL | MORE[recipe] | {"checkpoint_seconds": 1e-9}
    learn(recipe, rows, tmp_path / "whole", **more)
    original = module.Steps.on_step_end

    def killed(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        original(self, args, state, control, **rest)
        if state.global_step == 7:
            raise Killed

    monkeypatch.setattr(module.Steps, "on_step_end", killed)
    with pytest.raises(Killed):
        learn(recipe, rows, tmp_path / "model", **more)
    monkeypatch.setattr(module.Steps, "on_step_end", original)
    learn(recipe, rows, tmp_path / "model", **more)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "model"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
