"""What contrastive objectives refuse: each message is one line with the shapes; and the weights of weighted CLIP."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from efface.errors import InputError
from efface.learn.objective import Embedded
from efface.learn.objectives import siglip as siglip_file
from efface.learn.objectives import sup_con as sup_con_file
from efface.learn.objectives import weighted_clip as weighted_file
from efface.learn.objectives.clip import clip
from efface.learn.objectives.info_nce import info_nce
from efface.learn.objectives.moco import moco
from efface.learn.objectives.nt_xent import nt_xent
from efface.learn.objectives.siglip import siglip
from efface.learn.objectives.sup_con import sup_con
from efface.learn.objectives.sup_nt_xent import sup_nt_xent
from efface.learn.objectives.triplet import triplet
from efface.learn.objectives.weighted_clip import importance, weighted_clip

B, D, T = 12, 5, 0.2
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 3, 3, 0, 4])


def unit(seed: int, rows: int = B) -> Tensor:
    raw = torch.randn(rows, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalize(raw, dim=1)


def step(labels: Tensor | None = LABELS) -> Embedded:
    """One step of one process."""
    a, b = unit(0), unit(1)
    return Embedded(a, b, a, b, torch.tensor(5.0), labels=labels, labels_all=labels)


def broken(row: int, value: float) -> Tensor:
    x = unit(0).clone()
    x[row] = value
    return x


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan, math.inf])
def test_temperature_must_be_above_zero(temperature: float) -> None:
    for call in (
        lambda: info_nce(unit(0), unit(1), temperature), lambda: nt_xent(unit(0), unit(1), temperature),
        lambda: sup_con(unit(0), LABELS, temperature), lambda: sup_nt_xent(unit(0), LABELS, temperature),
        lambda: moco(unit(0), unit(1), unit(2), temperature),
    ):  # fmt: skip
        with pytest.raises(InputError, match="temperature"):
            call()
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="scale"):
            clip(unit(0), unit(1), scale)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (unit(0), unit(1)[:, :4], r"\[12, 5\] and \[12, 4\].*same D"),
        (unit(0), unit(1)[:7], r"\[12, 5\] and \[7, 5\].*as many rows"),
        (unit(0)[:1], unit(1)[:1], r"\[1, 5\] and \[1, 5\].*2 rows or more"),
        (unit(0)[0], unit(1)[0], r"\[5\] and \[5\].*two matrices"),
        (broken(3, math.nan), unit(1), r"row 3 of the first embeddings \[12, 5\] is not finite"),
        (unit(1), broken(2, math.inf), r"row 2 of the second embeddings \[12, 5\] is not finite"),
        (broken(4, 0.0), unit(1), r"row 4 of the first embeddings \[12, 5\] is zero"),
        (2 * unit(0), unit(1), r"first embeddings \[12, 5\] has norm 2;.*normalise"),
        (unit(0).long(), unit(1), r"int64; expected floating point"),
    ],
)
def test_embeddings_must_be_usable(first: Tensor, second: Tensor, words: str) -> None:
    for call in (
        lambda: info_nce(first, second, T), lambda: nt_xent(first, second, T), lambda: clip(first, second, 5.0),
        lambda: siglip(first, second, 5.0, -10.0), lambda: moco(first, second, unit(2), T),
        lambda: weighted_clip(first, second, 5.0, torch.ones(len(first))),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_labels_must_be_whole_numbers_of_the_batch() -> None:
    for equation in (lambda labels: sup_con(unit(0), labels, T), lambda labels: sup_nt_xent(unit(0), labels, T),
                     lambda labels: triplet(unit(0), labels)):  # fmt: skip
        with pytest.raises(InputError, match=r"labels \[12\] of type torch.float32; expected integers"):
            equation(LABELS.float())
        with pytest.raises(InputError, match=r"labels of shape \[7\] for 12 rows"):
            equation(LABELS[:7])
        with pytest.raises(InputError, match=r"raise batch_size|two views"):
            equation(torch.arange(B))  # nobody has a positive
    with pytest.raises(InputError, match=r"ids of shape \[3\] for 12 rows"):
        info_nce(unit(0), unit(1), T, ids=torch.arange(3))
    with pytest.raises(InputError, match="no labels"):
        sup_con_file.RECIPE.loss(step(labels=None), sup_con_file.SupConConfig())


def test_other_bad_input() -> None:
    with pytest.raises(InputError, match="mining='hardest'"):
        triplet(unit(0), LABELS, mining="hardest")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"queue \[3, 4\]"):
        moco(unit(0), unit(1), unit(2)[:3, :4], T)
    one = step()
    with pytest.raises(InputError, match="no bias"):
        siglip_file.RECIPE.loss(one, siglip_file.SigLIPConfig())
    with pytest.raises(InputError, match="no weights"):
        weighted_file.RECIPE.loss(one, weighted_file.WeightedCLIPConfig())


def test_weights() -> None:
    a, b = unit(25), unit(26)
    for weights in (-torch.ones(B), torch.zeros(B), torch.full((B,), math.inf), torch.ones(B - 1)):
        with pytest.raises(InputError, match="weights"):
            weighted_clip(a, b, 5.0, weights)
    equal = weighted_clip(a, b, 5.0, torch.full((B,), 1e30))
    assert float(equal) == pytest.approx(float(clip(a, b, 5.0)), rel=1e-6)
    large = weighted_clip(a, b, 5.0, torch.full((B,), 3e38))  # the sum of the weights overflows float32
    assert float(large) == pytest.approx(float(clip(a, b, 5.0)), rel=1e-6)
    parts = Embedded(a[:5], b[:5], a, b, torch.tensor(5.0), weights=torch.ones(5))
    with pytest.raises(InputError, match="weights of shape"):  # the mean needs those of all processes
        weighted_file.RECIPE.loss(parts, weighted_file.WeightedCLIPConfig())


def test_importance() -> None:
    images, domain = unit(27, rows=4), unit(28, rows=1)[0]
    slow = [math.exp(10 * sum(float(x) * float(y) for x, y in zip(row, domain, strict=True))) for row in images]
    assert importance(images, domain).tolist() == pytest.approx(slow, rel=1e-5)
    assert torch.isfinite(importance(domain[None], domain, 88.0)).all()
    for sharpness in (100.0, math.nan):
        with pytest.raises(InputError, match="overflows"):
            importance(images, domain, sharpness)
    with pytest.raises(InputError, match=r"\[4, 5\] and a domain \[4\]"):
        importance(images, domain[:4])
