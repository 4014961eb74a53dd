"""Fisher forgetting: the class-weighted information against a loop over rows and classes, the published clamps, the noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from predictor_worlds import predictor, request_of
from row_models import by_hand, close, data_of, mean_of, model_of, split

from efface.data.request import Request
from efface.errors import CheckFailed, ConfigError, RequestError
from efface.forget.edits.fisher import class_fisher, noise_variance
from efface.forget.method import Fitted, find_method
from efface.run.files import read_json
from efface.train.gradient_stats import mean_nll

METHOD = find_method("fisher")


def fit(subject: Any, request: Any, folder: Path, **values: Any) -> Fitted:
    return METHOD.fit(subject, request, METHOD.configure(values), work=folder / "work", out=folder / "edit")


def names_of(subject: Any) -> list[str]:
    return [name for name, _ in subject.model.named_parameters()]


@pytest.mark.parametrize("kind", ["mlp", "conv", "bert"])
def test_the_information_is_the_loop_over_rows_and_classes(kind: str) -> None:
    """Every class of every row, weighted by the model's own p(y|x); the rows' labels are not looked at."""
    subject = model_of(kind)
    rows = subject.encode_rows(data_of(kind, 7))
    made = class_fisher(subject, [row.labelled(0) for row in rows], names_of(subject))
    p = subject.read(rows)[1].double().softmax(-1)
    parts = []
    for i, row in enumerate(rows):
        every = by_hand(subject, [[row.labelled(y)] for y in range(3)], mean_nll)
        parts.append({n: sum(p[i, y] * every[y][n].square() for y in range(3)) for n in every[0]})
    close(made, mean_of(parts))


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 2, 2)])
def test_the_published_clamps(shape: tuple[int, ...], head: bool) -> None:
    """Entry by entry; of tensors with two sides or more the mean over dimension 1 counts."""
    generator = torch.Generator().manual_seed(0)
    fisher = 10 ** (6 * torch.rand(shape, generator=generator) - 5)
    fisher.view(-1)[0] = 0.0
    found = noise_variance(fisher, 0.3, head=head)
    assert found.shape == fisher.shape
    for index in torch.cartesian_prod(*(torch.arange(n) for n in shape)).view(-1, len(shape)).tolist():
        along = [index] if len(shape) == 1 else [[index[0], j, *index[2:]] for j in range(shape[1])]
        values = [0.3 * min(1 / (float(fisher[tuple(place)]) + 1e-8), 1e2 if head else 1e3) for place in along]
        expected = sum(values) / len(values) * (10 if head or len(shape) == 1 else 1)
        assert float(found[tuple(index)]) == pytest.approx(expected, rel=1e-4)


def test_the_noise_has_that_variance_and_frozen_weights_have_none(tmp_path: Path) -> None:
    subject, request = predictor(), request_of("class")
    frozen = names_of(subject)[0]
    subject.model.get_parameter(frozen).requires_grad_(False)
    rows = subject.encode_rows(request.retain)
    names = names_of(subject)[1:]
    fisher = class_fisher(subject, rows, names)
    before = {name: p.detach().clone() for name, p in subject.model.named_parameters()}
    digest = subject.digest
    z = []
    for seed in range(4):
        edit = fit(subject, request, tmp_path / str(seed), alpha=1e-4, seed=seed).edit
        edit.apply(subject)
        for name, p in subject.model.named_parameters():
            if name == frozen:
                assert torch.equal(p.detach(), before[name])
                continue
            v = noise_variance(fisher[name], 1e-4, head=name.startswith(f"{subject.head_name}."))
            z.append(((p.detach() - before[name]) / v.sqrt()).flatten())
        edit.remove(subject)
    assert subject.digest == digest
    drawn = torch.cat(z)
    assert abs(float(drawn.mean())) < 4 / len(drawn) ** 0.5
    assert float(drawn.std()) == pytest.approx(1, abs=4 / (2 * len(drawn)) ** 0.5)


def test_no_oracle_knows_the_forgotten_class(tmp_path: Path) -> None:
    """The published code puts the head's row of the forgotten class to zero; here the forget set plays no part."""
    subject, request = predictor(), request_of("class")
    digests = []
    for name, forget in (("all", request.forget), ("one", request.forget.select([0]))):
        fitted = fit(subject, Request(forget=forget, retain=request.retain), tmp_path / name, seed=3)
        digests.append(fitted.edit.facts.edited_digest)
    assert digests[0] == digests[1]
    notes = read_json(tmp_path / "all" / "edit" / "fisher.json")
    assert notes["relative_noise"] > 0
    assert set(notes["standard_deviations"]) == set(names_of(subject))


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fisher on a regressor"):
        fit(predictor(numbers=True), request_of("rows", numbers=True), tmp_path)
    with pytest.raises(RequestError, match="without a retain set"):
        fit(model_of("mlp"), Request(forget=split("mlp").forget), tmp_path)
    subject, request = model_of("mlp"), split("mlp")
    digest = subject.digest
    with pytest.raises(CheckFailed, match="would hold NaN or infinity; lower alpha"):
        fit(subject, request, tmp_path, alpha=1e300)
    subject.changed()
    assert subject.digest == digest
    assert not (tmp_path / "edit").exists()
