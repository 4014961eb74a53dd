"""MoCHi: against explicit mixes, its traps, and a run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import normalize

from efface.errors import ConfigError, InputError
from efface.learn.objective import Embedded
from efface.learn.objectives.mochi import RECIPE, Mixing, MoCHiConfig, mochi, mochi_losses
from efface.learn.objectives.moco import moco
from efface.learn.run import learn
from efface.numerics.mixing import draw, hardest, seeded
from efface.run.files import read_json

B, K, D, T = 6, 40, 5, 0.2
N, S, A = 8, 7, 5
SMALL: dict[str, Any] = {
    "start": {"widths": (16, 8)}, "feature_views": {"corrupt": 0.2}, "batch_size": 8, "epochs": 6, "projector": 8,
    "queue_size": 24, "hard": 6, "mixed": 5, "with_anchor": 3, "momentum": 0.9, "synthesis_epoch": 2, "evaluations": 0,
}  # fmt: skip


def unit(seed: int, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, D, generator=generator, dtype=torch.float64), dim=1)


def mixing(seed: int = 0, **parts: Any) -> Mixing:
    return Mixing(N, S, A, seeded(seed, 3), **parts)


def slow(q: Tensor, keys: Tensor, queue: Tensor, ids: Tensor | None = None, queue_ids: Tensor | None = None) -> Tensor:
    """L_i [B] with every mix formed, from the same draws."""
    generator = seeded(0, 3)
    ui, uj, a, um, b = (
        draw(generator, B, width, like=q, high=high)
        for width, high in ((S, 1.0), (S, 1.0), (S, 1.0), (A, 1.0), (A, 0.5))
    )
    losses = []
    for i in range(B):
        real = [k for k in range(K) if ids is None or queue_ids is None or ids[i] != queue_ids[k]]
        hard = sorted(real, key=lambda k: -float(q[i].detach() @ queue[k]))[:N]
        made = []
        for s in range(S):
            h = (
                a[i, s] * queue[hard[int(ui[i, s] * len(hard))]]
                + (1 - a[i, s]) * queue[hard[int(uj[i, s] * len(hard))]]
            )
            made.append(h / h.norm())
        for s in range(A):
            h = b[i, s] * q[i] + (1 - b[i, s]) * queue[hard[int(um[i, s] * len(hard))]]
            made.append(h / h.norm())
        logits = [q[i] @ keys[i], *(q[i] @ queue[k] for k in real), *(q[i] @ h.detach() for h in made)]
        losses.append(torch.logsumexp(torch.stack(logits) / T, 0) - logits[0] / T)
    return torch.stack(losses)


@pytest.mark.parametrize("tile", [None, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_against_explicit_mixes_in_value_and_gradient(masked: bool, tile: int | None) -> None:
    q, keys, queue = unit(0, B).requires_grad_(), unit(1, B), unit(2, K)
    ids, queue_ids = (torch.arange(B), torch.arange(K) % 7) if masked else (None, None)
    found = mochi(q, keys, queue, T, mixing(), ids=ids, queue_ids=queue_ids, tile=tile)
    expected = slow(q, keys, queue, ids, queue_ids).mean()
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    grads = [torch.autograd.grad(value, q)[0] for value in (found, expected)]
    torch.testing.assert_close(*grads, atol=1e-12, rtol=0)
    assert float(found.detach()) > float(moco(q, keys, queue, T, ids=ids, queue_ids=queue_ids).detach())


def test_no_gradient_through_the_anchor_inside_its_mix() -> None:
    """With it, part of the gradient would survive normalisation; the mix is a constant to keys and queue as well."""
    q, keys, queue = (unit(seed, rows).requires_grad_() for seed, rows in ((0, B), (1, B), (2, K)))
    value = mochi(q, keys, queue, T, Mixing(N, 0, 50, seeded(0, 3)))
    by_q, by_keys, by_queue = torch.autograd.grad(value, (q, keys, queue), allow_unused=True)
    assert by_keys is None
    assert by_queue is None
    # the derivative of the constant-mix loss by finite differences of q where the mixes are held
    _, others, count = hardest(q, queue, N)
    generator = seeded(0, 3)
    for _ in range(3):
        draw(generator, B, 0, like=q)
    place, b = draw(generator, B, 50, like=q), draw(generator, B, 50, like=q, high=0.5)
    j = others.gather(1, (place * count[:, None]).long())
    held = normalize(b[..., None] * q[:, None] + (1 - b[..., None]) * queue[j], dim=2).detach()

    def with_held(x: Tensor) -> Tensor:
        logits = torch.cat([(x * keys).sum(1, keepdim=True), x @ queue.T, torch.einsum("bd,bsd->bs", x, held)], 1) / T
        return (torch.logsumexp(logits, 1) - logits[:, 0]).mean()

    expected = torch.autograd.grad(with_held(q), q)[0]
    torch.testing.assert_close(by_q, expected, atol=1e-12, rtol=0)


def test_mixes_are_harder_than_their_number_says() -> None:
    q = unit(0, B)
    found = mochi_losses(q, unit(1, B), unit(2, 400), 1 / T, Mixing(20, 30, 20, seeded(0, 0)))
    assert found.share == 50 / 451
    assert float(found.mass.min()) > found.share
    assert (found.losses > found.base).all()
    bare = mochi_losses(q, unit(1, B), unit(2, 400), 1 / T, None)
    torch.testing.assert_close(bare.losses, found.base)
    assert torch.equal(bare.first, found.first)


def test_oracle_never_mixes_the_anchors_class_and_masks_ask_for_integers() -> None:
    """With all keys but two of the anchor's class, every mix of two is of those two."""
    q, keys, queue = unit(0, B), unit(1, B), unit(2, K)
    labels, queue_labels = torch.zeros(B, dtype=torch.int64), torch.zeros(K, dtype=torch.int64)
    queue_labels[[4, 9]] = 1
    found = mochi_losses(q, keys, queue, 1 / T, mixing(), labels=labels, queue_labels=queue_labels)
    two = queue[[4, 9]]
    assert (found.losses > found.base).all()
    nearest = torch.stack([normalize(t * two[0] + (1 - t) * two[1], dim=0) for t in torch.linspace(0, 1, 101)])
    bound = torch.cat([nearest, normalize(torch.stack([q + x for x in two], 1).flatten(0, 1), dim=1)])
    most = (q @ bound.T).amax(1) / T  # no mix of these keys lies nearer than this
    real = torch.logsumexp(q @ queue.T / T, 1)
    own = (q * keys).sum(1) / T
    ceiling = torch.logaddexp(torch.logaddexp(real, most + np.log(S + A)), own) - own
    assert (found.losses <= ceiling + 1e-4).all()
    unmixed = mochi_losses(
        q, keys, queue, 1 / T, mixing(), labels=labels, queue_labels=torch.zeros(K, dtype=torch.int64)
    )
    torch.testing.assert_close(unmixed.losses, unmixed.base)  # nothing but the own class: no mix, no NaN
    with pytest.raises(InputError, match="labels of the queue"):
        mochi(q, keys, queue, T, mixing(), labels=labels, queue_labels=queue_labels[:3])


def test_an_anchor_whose_keys_are_all_its_own_item_teaches_nothing() -> None:
    q = unit(0, B).requires_grad_()
    ids = torch.zeros(B, dtype=torch.int64)
    found = mochi(q, unit(1, B), unit(2, K), T, mixing(), ids=ids, queue_ids=torch.zeros(K, dtype=torch.int64))
    assert float(found.detach()) == 0
    assert not torch.autograd.grad(found, q)[0].any()


def batch(rows: slice, **more: Any) -> Embedded:
    q, keys = unit(0, B), unit(1, B)
    return Embedded(
        first=q[rows], second=keys[rows], first_all=q, second_all=keys, scale=torch.tensor(1 / T, dtype=torch.float64),
        start=rows.start, ids=torch.arange(B)[rows] + 100, **more,
    )  # fmt: skip


def test_parts_of_several_processes_sum_to_one_and_steps_differ() -> None:
    config = MoCHiConfig(hard=N, mixed=S, with_anchor=A, queue_size=K, synthesis_epoch=2)
    queue = {"queue": unit(2, K), "queue_ids": torch.arange(K), "epoch": 2.0}
    assert RECIPE.loss is not None
    whole = RECIPE.loss(batch(slice(0, B), step=3, **queue), config)[0]
    parts = [RECIPE.loss(batch(rows, step=3, **queue), config)[0] for rows in (slice(0, 2), slice(2, B))]
    torch.testing.assert_close(sum(parts), whole, atol=1e-12, rtol=0)
    assert float(RECIPE.loss(batch(slice(0, B), step=4, **queue), config)[0]) != float(whole)


def test_nothing_is_mixed_before_the_warm_up_is_over_or_the_queue_is_full_enough() -> None:
    config = MoCHiConfig(hard=N, mixed=S, with_anchor=A, queue_size=K, synthesis_epoch=2)
    assert RECIPE.loss is not None

    def share(epoch: float, keys: int) -> float:
        given = {"queue": unit(2, K)[:keys], "queue_ids": torch.arange(keys), "epoch": epoch}
        return RECIPE.loss(batch(slice(0, B), step=3, **given), config)[1]["synthetic_share"]  # type: ignore[misc]

    assert share(1.99, K) == 0
    assert share(2.0, N - 1) == 0
    assert share(2.0, N) == (S + A) / (1 + N + S + A)
    empty, numbers = RECIPE.loss(batch(slice(0, B)), config)
    assert float(empty) == 0
    assert numbers == {"queue": 0.0}


def test_more_hard_keys_than_the_queue_holds_are_refused_by_name_and_many_are_warned_of() -> None:
    with pytest.raises(ConfigError, match=r"hard=1024 is at most queue_size=512"):
        MoCHiConfig.parse({"queue_size": 512})
    assert RECIPE.loss is not None
    with pytest.warns(UserWarning, match="hard=11 of a queue of 40"):
        RECIPE.loss(batch(slice(0, B)), MoCHiConfig(hard=11, queue_size=K))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RECIPE.loss(batch(slice(0, B)), MoCHiConfig(hard=10, queue_size=K))


def arrays(rows: int = 32) -> Dataset:
    rng = np.random.default_rng(0)
    label = np.arange(rows) % 4
    features = rng.normal(size=(rows, 6)) + 2 * np.eye(4, 6)[label]
    return Dataset.from_dict({
        "id": [str(i) for i in range(rows)], "features": features.astype("float32").tolist(), "label": label.tolist(),
    })  # fmt: skip


@pytest.mark.parametrize("oracle", [False, True])
def test_a_run_mixes_after_its_warm_up(oracle: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, float]] = []
    from efface.learn.objectives import mochi as file

    original = file.mochi_losses

    def spied(*given: Any, **more: Any) -> Any:
        found = original(*given, **more)
        seen.append({"share": found.share, "oracle": float(more["queue_labels"] is not None)})
        return found

    monkeypatch.setattr(file, "mochi_losses", spied)
    model = learn("mochi", arrays(), tmp_path / "model", oracle_labels=oracle, **SMALL)
    assert model.kind == "encoder"
    # four steps an epoch; the first has an empty queue
    assert [row["share"] > 0 for row in seen] == [False] * 7 + [True] * 16
    assert all(row["oracle"] == oracle for row in seen)
    assert np.isfinite(read_json(tmp_path / "model" / "learn.json")["final_loss"])


def test_the_oracle_needs_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no labels"):
        learn("mochi", arrays().remove_columns("label"), tmp_path / "model", oracle_labels=True, **SMALL)


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    from efface.learn import module

    more: dict[str, Any] = SMALL | {"checkpoint_seconds": 1e-9}
    learn("mochi", arrays(), tmp_path / "whole", **more)

    class Killed(Exception):
        pass

    original = module.Steps.on_step_end

    def killed(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        original(self, args, state, control, **rest)
        if state.global_step == 13:  # mixes since step 8
            raise Killed

    monkeypatch.setattr(module.Steps, "on_step_end", killed)
    with pytest.raises(Killed):
        learn("mochi", arrays(), tmp_path / "model", **more)
    monkeypatch.setattr(module.Steps, "on_step_end", original)
    learn("mochi", arrays(), tmp_path / "model", **more)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "model"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
