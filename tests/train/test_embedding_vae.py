"""The autoencoder of embeddings: KL and loss against other computations, units, what is sampled, exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from efface.errors import InputError
from efface.train import embedding_vae
from efface.train.embedding_vae import (
    EmbeddingVAE,
    EmbeddingVAEConfig,
    Reconstruction,
    fit_vae,
    kl_to_normal,
    residual,
    spread,
    vae_loss,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cloud(n: int = 64, d: int = 12, seed: int = 0) -> Tensor:
    """Rows near a plane of three dimensions, away from the origin."""
    return random(n, 3, seed=seed) @ random(3, d, seed=50) * 3 + 5 + 0.1 * random(n, d, seed=seed + 100)


def config(**more: Any) -> EmbeddingVAEConfig:
    return EmbeddingVAEConfig(**{"latent": 3, "epochs": 4, "seed": 1, **more})


def bits(vae: EmbeddingVAE) -> list[Tensor]:
    return list(vae.state_dict().values())


def test_kl_is_that_of_two_normals() -> None:
    mu, log_variance = random(5, 4).double(), random(5, 4, seed=1).double()
    found = torch.distributions.kl_divergence(
        torch.distributions.Normal(mu, (0.5 * log_variance).exp()), torch.distributions.Normal(torch.zeros(5, 4), 1.0)
    )
    assert torch.allclose(kl_to_normal(mu, log_variance), found.sum(-1))
    assert float(kl_to_normal(torch.zeros(1, 4), torch.zeros(1, 4))) == 0


def test_the_loss_by_a_plain_loop() -> None:
    target, said, mu, log_variance = (random(3, n, seed=n + 1).double() for n in (6, 6, 2, 2))
    found = float(vae_loss(Reconstruction(target, said, mu, log_variance), 0.025))
    total = 0.0
    for i in range(3):
        total += sum((float(said[i, j]) - float(target[i, j])) ** 2 for j in range(6))
        for k in range(2):
            m, v = float(mu[i, k]), float(log_variance[i, k])
            total += 0.025 * 0.5 * (m * m + np.exp(v) - 1 - v)
    assert found == pytest.approx(total / 3)


def test_units_are_standardised_and_still_ones_stay_small() -> None:
    rows = random(200, 5) * torch.tensor([1.0, 2.0, 3.0, 1e-4, 0.0]) + torch.tensor([0.0, 5.0, -2.0, 1.0, 7.0])
    centre, scale = spread(rows)
    assert torch.allclose(centre, rows.mean(0))
    assert torch.allclose(scale[:3], rows[:, :3].std(0, correction=0))
    typical = float(rows.var(0, correction=0).mean().sqrt())
    assert scale[3:].tolist() == pytest.approx([0.1 * typical] * 2), "a rare unit must not outweigh all others"
    assert spread(torch.ones(4, 3))[1].tolist() == [1, 1, 1]


def test_the_default_is_linear_and_sure_the_released_form_is_neither(tmp_path: Path) -> None:
    rows = cloud()
    plain = fit_vae(rows, config(), folder=tmp_path / "a")
    released = fit_vae(rows, config(official=True), folder=tmp_path / "b")
    assert isinstance(plain.decoder[-1], nn.Linear)
    assert plain(rows).said.min() < 0
    assert torch.equal(plain.residual(rows), plain.residual(rows))
    assert released(rows).said.min() >= 0
    assert released(rows).said.max() <= 1
    assert torch.equal(released(rows).target, rows), "raw embeddings"
    assert not torch.equal(released.residual(rows), released.residual(rows)), "sampled in evaluation mode too"
    plain.train()
    assert not torch.equal(plain.residual(rows), plain.residual(rows)), "training samples"


def test_a_residual_tells_rows_like_the_fitted_ones_from_others(tmp_path: Path) -> None:
    vae = fit_vae(cloud(), config(epochs=60), folder=tmp_path)
    like, other = cloud(seed=7), 5 + 5 * random(64, 12, seed=9)
    assert float(vae.residual(like).median()) < 0.25 * 12, "explains three quarters of the spread or more"
    assert float(vae.residual(other).median()) > 4 * float(vae.residual(like).median())


def test_the_gradient_goes_to_the_embedding_only(tmp_path: Path) -> None:
    vae = fit_vae(cloud(), config(), folder=tmp_path)
    e = cloud(8, seed=3).requires_grad_(True)
    vae.residual(e).sum().backward()
    assert e.grad is not None
    assert bool((e.grad != 0).any())
    assert all(not p.requires_grad and p.grad is None for p in vae.parameters())
    assert not vae.training


def test_embeddings_are_detached_and_units_may_be_anothers(tmp_path: Path) -> None:
    rows = cloud().requires_grad_(True)
    wide = torch.cat([cloud(), 3 * cloud(seed=2)])
    vae = fit_vae(rows, config(), folder=tmp_path, units=wide)
    assert rows.grad is None
    assert torch.equal(vae.centre, wide.mean(0))


def test_same_seed_same_bits_and_generators_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(4)
    expected = float(torch.rand(1))
    torch.manual_seed(4)
    fits = [fit_vae(cloud(), config(seed=seed), folder=tmp_path / str(i)) for i, seed in enumerate((1, 1, 2))]
    assert float(torch.rand(1)) == expected
    assert all(torch.equal(a, b) for a, b in zip(bits(fits[0]), bits(fits[1]), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(bits(fits[0]), bits(fits[2]), strict=True))


def test_a_killed_fit_goes_on_and_a_finished_one_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit_vae(cloud(), config(), folder=tmp_path / "a")
    often, calls = config(checkpoint_seconds=1e-9), []

    def dying(found: Reconstruction, kl_weight: float) -> Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return vae_loss(found, kl_weight)

    with monkeypatch.context() as patch:
        patch.setattr(embedding_vae, "vae_loss", dying)
        with pytest.raises(KeyboardInterrupt):
            fit_vae(cloud(), often, folder=tmp_path / "b")
        resumed = fit_vae(cloud(), often, folder=tmp_path / "b")
        done = len(calls)
        again = fit_vae(cloud(), often, folder=tmp_path / "b")
        assert len(calls) == done == 5 + 4, "8 steps, of which four were done before the kill"
    for other in (resumed, again):
        assert all(torch.equal(a, b) for a, b in zip(bits(whole), bits(other), strict=True))
        assert not other.training
        assert not any(p.requires_grad for p in other.parameters())


def test_the_last_batch_is_never_a_single_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = embedding_vae.residual

    def seen(target: Tensor, said: Tensor) -> Tensor:
        sizes.append(len(target))
        return plain(target, said)

    monkeypatch.setattr(embedding_vae, "residual", seen)
    fit_vae(cloud(33), config(), folder=tmp_path)
    assert set(sizes) == {32}


def test_what_is_refused(tmp_path: Path) -> None:
    for rows in (cloud(1), torch.ones(4), torch.full((4, 3), torch.nan)):
        with pytest.raises(InputError, match="N >= 2"):
            fit_vae(rows, config(), folder=tmp_path)
    vae = EmbeddingVAE(12, 3)
    for rows in (cloud(d=11), cloud()[0], cloud().view(8, 8, 12)):
        with pytest.raises(InputError, match="width 12"):
            vae(rows)


def test_residual_is_summed_over_units() -> None:
    assert residual(torch.zeros(1, 3), torch.tensor([[1.0, 2.0, 2.0]])).tolist() == [9.0]
