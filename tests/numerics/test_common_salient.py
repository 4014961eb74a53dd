"""SepCLR's four terms: against plain loops, and their traps."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from efface.errors import InputError
from efface.numerics.common_salient import align, common_loss, information_loss, joint_loss, salient_loss, taught

TAU = 0.5
TARGET = torch.tensor([False, True, True, False, True, False])


def rows(width: int, seed: int) -> torch.Tensor:
    return torch.randn(6, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


C1, C2, S1, S2 = normalize(rows(3, 0), dim=1), normalize(rows(3, 1), dim=1), rows(2, 2), rows(2, 3)


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)) / (2 * TAU)


def unif(x: torch.Tensor) -> float:
    pairs = [math.exp(-apart(x[i], x[j])) for i in range(6) for j in range(i + 1, 6)]
    return math.log(sum(pairs) / len(pairs))


def emptied(s: torch.Tensor) -> torch.Tensor:
    """s' as the official code makes it: rows of a copy overwritten."""
    found = s.clone()
    found[~TARGET] = 0
    return found


def test_common() -> None:
    expected = sum(apart(C1[i], C2[i]) for i in range(6)) / 6 + 2 * (unif(C1) + unif(C2)) / 2
    assert float(common_loss(C1, C2, TAU)) == pytest.approx(expected)


def test_salient_sees_the_background_at_zero() -> None:
    places = [i for i in range(6) if TARGET[i]]
    expected = sum(apart(S1[i], S2[i]) for i in places) / 3 + 2 * (unif(emptied(S1)) + unif(emptied(S2))) / 2
    assert float(salient_loss(S1, S2, TARGET, TAU)) == pytest.approx(expected)
    assert torch.equal(taught(S1, TARGET), emptied(S1))


def test_information() -> None:
    places = [i for i in range(6) if not TARGET[i]]
    nothing = torch.zeros(2)
    expected = sum(apart(s[i], nothing) for i in places for s in (S1, S2)) / 3 / 2
    assert float(information_loss(S1, S2, TARGET, TAU)) == pytest.approx(expected)


def test_joint_counts_the_diagonal() -> None:
    expected = 0.0
    for c, s in ((C1, emptied(S1)), (C2, emptied(S2))):
        for i in range(6):
            near = [math.exp(-apart(c[i], c[j])) * math.exp(-apart(s[i], s[j])) for j in range(6)]
            expected += math.log(sum(near) / 6) / 6 / 2
    found = float(joint_loss((C1, C2), (S1, S2), TARGET, TAU))
    assert found == pytest.approx(expected)
    assert -math.log(6) < found < 0


def test_what_a_gradient_reaches() -> None:
    s1, s2 = S1.clone().requires_grad_(), S2.clone().requires_grad_()
    (salient_loss(s1, s2, TARGET, TAU) + joint_loss((C1, C2), (s1, s2), TARGET, TAU)).backward()
    for grad in (s1.grad, s2.grad):
        assert grad is not None
        assert torch.equal(grad[~TARGET], torch.zeros(3, 2, dtype=torch.float64)), "the background's null is a constant"
        assert (grad[TARGET] != 0).all()
    s1, s2 = S1.clone().requires_grad_(), S2.clone().requires_grad_()
    information_loss(s1, s2, TARGET, TAU).backward()
    assert s1.grad is not None
    assert torch.equal(s1.grad[TARGET], torch.zeros(3, 2, dtype=torch.float64))


def test_equal_codes_have_a_finite_gradient() -> None:
    s = torch.zeros(6, 2, requires_grad=True)
    (salient_loss(s, s, TARGET, TAU) + joint_loss((C1.float(), C2.float()), (s, s), TARGET, TAU)).backward()
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("target", [[0] * 6, [1] * 6, [1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1]])
def test_a_batch_without_two_of_each_is_refused_and_is_not_nan(target: list[int]) -> None:
    mask = torch.tensor(target).bool()
    for call in (lambda: salient_loss(S1, S2, mask, TAU), lambda: information_loss(S1, S2, mask, TAU)):
        with pytest.raises(InputError, match="2 of each"):
            call()
    with pytest.raises(InputError, match="both sets"):
        align(S1[:0], S2[:0], TAU)
