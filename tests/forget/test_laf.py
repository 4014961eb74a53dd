"""Label-agnostic forgetting: its two losses, that no label is read, what moves, the traps of its specification."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from row_models import model_of, split
from torch import Tensor, nn

from efface.data.request import Request
from efface.errors import CheckFailed, ConfigError, InputError, ModelError, RequestError
from efface.forget.edit import Edit
from efface.forget.method import find_method
from efface.forget.objectives import laf
from efface.forget.objectives.laf import alignment_loss, bounded, drift, unlearning_loss, without_labels
from efface.subjects.factory import FactoryForm
from efface.subjects.predictor import Predictor
from efface.train import embedding_vae

METHOD = find_method("laf")
QUICK = {"epochs": 2, "batch_size": 8, "lr_ue": 1e-3, "lr_ra": 3e-3, "vae_epochs": 1, "temperature": 5, "stop_below": 0}
CENTRES = 4 * np.eye(3, 6)


def cloud(n: int, seed: int) -> tuple[Any, Any]:
    """Rows around three centres."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    return (CENTRES[labels] + 0.7 * rng.standard_normal((n, 6))).astype(np.float32), labels


def rows(features: Any, labels: Any, name: str = "label") -> Dataset:
    ids = [f"{name}{i}" for i in range(len(labels))]
    return Dataset.from_dict({"id": ids, "features": list(features), name: list(labels)})


def request_with(change: Callable[[Any], Any] = lambda labels: labels, *, retain_too: bool = True) -> Request:
    """Forget class 2; labels as `change` makes them."""
    x, y = cloud(60, 0)
    forget, retain = y == 2, y != 2
    kept = y[retain]
    return Request(
        forget=rows(x[forget], change(y[forget])), retain=rows(x[retain], change(kept) if retain_too else kept)
    )


def trained(model: nn.Module) -> Predictor:
    """A classifier of the clouds."""
    x, y = (torch.as_tensor(part) for part in cloud(60, 0))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    for p in model.parameters():
        p.grad = None
    form = FactoryForm(factory="efface.subjects.networks:mlp", labels=("a", "b", "c"))
    return Predictor(model.eval(), form=form)


def network(norm: bool = False) -> nn.Sequential:
    """6-16-8-3 with dropout."""
    middle = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 8), *middle, nn.ReLU(), nn.Linear(8, 3)
    )  # fmt: skip


def classifier(norm: bool = False) -> Predictor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trained(network(norm))


@pytest.fixture
def subject() -> Predictor:
    return classifier()


def fit(subject: Any, request: Request, folder: Path, **values: Any) -> Edit:
    config = METHOD.configure({**QUICK, **values})
    return METHOD.fit(subject, request, config, work=folder / "work", out=folder / "edit").edit


def edited(subject: Predictor, edit: Edit) -> dict[str, Tensor]:
    edit.apply(subject)
    found = {name: value.detach().clone() for name, value in subject.weights().items()}
    edit.remove(subject)
    return found


def moved(subject: Predictor, edit: Edit) -> set[str]:
    before = {name: value.detach().clone() for name, value in subject.weights().items()}
    after = edited(subject, edit)
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


# -- equations ---------------------------------------------------------------------------------------------------------


def test_n_is_bounded_and_flat_for_large_residuals() -> None:
    r = torch.tensor([0.0, 1.0, 20.0, 1e6], dtype=torch.float64, requires_grad=True)
    found = bounded(r)
    assert found.tolist() == pytest.approx([1.0, math.exp(0.5), math.exp(20 / 21), math.e], rel=1e-5)
    (slope,) = torch.autograd.grad(found.sum(), r)
    assert slope.tolist() == pytest.approx([1.0, math.exp(0.5) / 4, math.exp(20 / 21) / 441, 0.0], abs=1e-9)


def test_the_losses_by_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    r, r_f, s, s_f = (5 * torch.rand(n, generator=generator, dtype=torch.float64) for n in (4, 3, 4, 3))
    slow = sum(math.exp(v / (v + 1)) for v in r.tolist()) - sum(math.exp(v / (v + 1)) for v in r_f.tolist())
    assert float(unlearning_loss(r, r_f)) == pytest.approx(slow)
    below = sum(math.exp(u / 20) for u in s_f.tolist())
    slow = sum(math.log(math.exp(v) / below) for v in s.tolist())
    assert float(alignment_loss(s, s_f, 20.0)) == pytest.approx(slow)


def test_alignment_pulls_retain_rows_back_and_pushes_forget_rows_away_at_any_temperature() -> None:
    s, s_f = torch.tensor([0.1, 0.3], requires_grad=True), torch.tensor([0.2, 0.5, 1.9], requires_grad=True)
    for temperature in (20.0, 1e-3):
        pull, push = torch.autograd.grad(alignment_loss(s, s_f, temperature), [s, s_f])
        assert pull.tolist() == [1.0, 1.0]
        assert bool((push <= 0).all())
        assert bool(torch.isfinite(push).all())
        assert float(push.sum()) == pytest.approx(-2 / temperature, rel=1e-5), "the naive exponential overflows"
    with pytest.raises(InputError, match="forget batch of 1"):
        alignment_loss(s, s_f[:1], 5.0)


def test_drift_is_one_minus_the_cosine() -> None:
    before = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
    now = torch.tensor([[3.0, 0.0], [0.0, -1.0], [1.0, -1.0], [1.0, 0.0]])
    assert drift(now, before).tolist() == pytest.approx([0.0, 2.0, 1.0, 1.0])


def test_at_the_start_the_alignment_has_no_gradient() -> None:
    e = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    now = e.clone().requires_grad_(True)
    s = drift(now, e)
    (gradient,) = torch.autograd.grad(alignment_loss(s[:3], s[3:], 5.0), now)
    assert float(gradient.abs().max()) < 1e-12


# -- labels ------------------------------------------------------------------------------------------------------------


def junk(labels: Any) -> Any:
    return np.random.default_rng(1).integers(-999, 999, len(labels))


def test_labels_are_not_used(subject: Predictor, tmp_path: Path) -> None:
    edits = [
        fit(subject, request_with(change), tmp_path / name)
        for name, change in {"true": lambda y: y, "junk": junk, "one class": lambda y: 0 * y}.items()
    ]
    assert len({edit.facts.edited_digest for edit in edits}) == 1
    numbers = Request(**{
        name: rows(data["features"], [float("nan")] * len(data), "target")
        for name, data in (("forget", request_with().forget), ("retain", request_with().retain))
    })  # fmt: skip
    assert fit(subject, numbers, tmp_path / "numbers").facts.edited_digest == edits[0].facts.edited_digest


def test_labels_are_gone_before_a_row_is_read() -> None:
    data = request_with(junk).forget
    assert set(without_labels(data)["label"]) == {0}
    assert without_labels(data)["id"] == data["id"]


def test_the_repair_reads_the_retain_labels_and_moves_the_head_alone(subject: Predictor, tmp_path: Path) -> None:
    plain = edited(subject, fit(subject, request_with(), tmp_path / "plain"))
    repaired = fit(subject, request_with(), tmp_path / "a", repair=True)
    after = edited(subject, repaired)
    assert {name for name in plain if not torch.equal(plain[name], after[name])} == {"5.weight", "5.bias"}
    other = fit(subject, request_with(junk, retain_too=False), tmp_path / "b", repair=True)
    assert other.facts.edited_digest == repaired.facts.edited_digest, "forget labels are not used by it either"
    swapped = fit(subject, request_with(lambda y: y % 2), tmp_path / "c", repair=True)
    assert swapped.facts.edited_digest == repaired.facts.edited_digest, "the retain rows are of class 0 or 1"
    turned = fit(subject, request_with(lambda y: (y + 1) % 2), tmp_path / "d", repair=True)
    assert turned.facts.edited_digest != repaired.facts.edited_digest
    with pytest.raises(RequestError, match="retain row"):
        fit(subject, request_with(junk), tmp_path / "e", repair=True)


# -- what it does and what moves -----------------------------------------------------------------------------------------


def test_a_class_is_forgotten_and_the_others_stay(subject: Predictor, tmp_path: Path) -> None:
    request = request_with()

    def correct(data: Any) -> float:
        samples = subject.encode_rows(data)
        said = subject.read(samples)[1].argmax(-1)
        return float((said == torch.tensor([row.target for row in samples])).float().mean())

    assert (correct(request.forget), correct(request.retain)) == (1.0, 1.0)
    edit = fit(subject, request, tmp_path, epochs=30, lr_ue=1e-3, lr_ra=1e-2)
    edit.apply(subject)
    assert correct(request.forget) < 0.2
    assert correct(request.retain) > 0.9


def test_contract(subject: Predictor, tmp_path: Path) -> None:
    digest = subject.digest
    subject.model.train()
    subject.model[0].bias.requires_grad_(False)
    edit = fit(subject, request_with(), tmp_path / "a")
    subject.changed()
    assert subject.digest == digest
    assert subject.model.training
    assert [p.requires_grad for p in subject.model.parameters()] == [True, False] + [True] * 4
    assert all(p.grad is None for p in subject.model.parameters())
    assert not (tmp_path / "a" / "work").exists()
    edit.save(tmp_path / "copy")
    again = Edit.load(tmp_path / "copy")
    assert again.facts == edit.facts
    assert moved(subject, again) == {"0.weight", "0.bias", "3.weight", "3.bias"}, "the head stays"
    subject.changed()
    assert subject.digest == digest
    same, other = (fit(subject, request_with(), tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert same.facts.edited_digest == edit.facts.edited_digest != other.facts.edited_digest


@pytest.mark.parametrize("kind", ["conv", "bert"])
def test_pictures_and_texts(kind: str, tmp_path: Path) -> None:
    subject, request = model_of(kind), split(kind)
    digest = subject.digest
    names = moved(subject, fit(subject, request, tmp_path / "all", batch_size=2, vae_epochs=20))
    assert names
    assert not any(name.startswith(subject.head_name) or "running" in name for name in names)
    subject.changed()
    assert subject.digest == digest


def test_each_loss_alone_and_the_choices_change_the_result(subject: Predictor, tmp_path: Path) -> None:
    runs: dict[str, dict[str, Any]] = {
        "both": {}, "alignment": {"lr_ue": 0}, "unlearning": {"lr_ra": 0}, "retain": {"vae_on": "retain"},
        "temperature": {"temperature": 1.0},
    }  # fmt: skip
    found = {}
    for name, values in runs.items():
        config = METHOD.configure({**QUICK, **values})
        fitted = METHOD.fit(subject, request_with(), config, work=tmp_path / name / "w", out=tmp_path / name / "e")
        found[name] = fitted.edit.facts.edited_digest
        numbers = set(fitted.log[0])
        assert ("unlearning" in numbers) == (name != "alignment") == ("r_forget_q50" in numbers)
        assert ("alignment" in numbers) == (name != "unlearning")
    assert len(set(found.values())) == len(runs)


def test_norms_keep_their_statistics_and_dropout_is_off_whatever_the_mode(tmp_path: Path) -> None:
    subject = classifier(norm=True)
    digests = []
    for mode in (True, False):
        subject.model.train(mode)
        edit = fit(subject, request_with(), tmp_path / str(mode))
        digests.append(edit.facts.edited_digest)
        assert not any("running" in name or "num_batches" in name for name in moved(subject, edit))
        assert subject.model.training == mode
    assert digests[0] == digests[1]


def test_the_released_autoencoder_is_there_and_its_residuals_are_told(subject: Predictor, tmp_path: Path) -> None:
    with torch.no_grad():
        subject.model[3].weight.mul_(20)
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"median residual of the (retain|forget) rows is .* where n\(r\) is flat"):
        edits = [fit(subject, request_with(), tmp_path / name, official=True) for name in ("a", "b")]
    assert edits[0].facts.config["run"]["median_residuals"]["retain"] > 20
    assert edits[0].facts == edits[1].facts, "it draws, by the seed"
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(embedding_vae, "vae_loss", 9), (laf, "alignment_loss", 4), (nn.functional, "cross_entropy", 3)],
    ids=["second autoencoder", "alternating", "repair"],
)
def test_a_killed_fit_goes_on_to_the_same_bits(
    owner: Any, name: str, call: int, subject: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"repair": True, "checkpoint_seconds": 1e-9, "stop_below": 0.01}
    whole = fit(subject, request_with(), tmp_path / "whole", **values)
    plain, calls = getattr(owner, name), []

    def dying(*args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return plain(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(KeyboardInterrupt):
            fit(subject, request_with(), tmp_path / "killed", **values)
    assert list((tmp_path / "killed" / "work").rglob("checkpoint-*")), "there is something to go on from"
    subject.changed()
    assert subject.digest == whole.facts.base_digest
    assert fit(subject, request_with(), tmp_path / "killed", **values).facts.edited_digest == whole.facts.edited_digest


# -- traps -------------------------------------------------------------------------------------------------------------


def test_a_run_that_destroys_the_rest_ends_and_goes_back(subject: Predictor, tmp_path: Path) -> None:
    values = {"epochs": 40, "lr_ue": 5e-3, "lr_ra": 0.0}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        edit = fit(subject, request_with(), tmp_path, **values, stop_below=0.97)
    run = edit.facts.config["run"]
    assert any("went back to step" in str(one.message) for one in told)
    assert run["stopped_at"] < run["steps"]
    assert run["agreement"] < 0.97
    samples = subject.encode_rows(request_with().retain)
    before = subject.read(samples)[1].argmax(-1)
    edit.apply(subject)
    assert float((subject.read(samples)[1].argmax(-1) == before).float().mean()) >= 0.97


def test_a_first_pass_that_destroys_it_is_an_error_and_changes_nothing(subject: Predictor, tmp_path: Path) -> None:
    digest = subject.digest
    with pytest.raises(CheckFailed, match=r"laf: after .* lower the learning rates"):
        fit(subject, request_with(), tmp_path, lr_ue=1.0, lr_ra=0.0, stop_below=0.99)
    subject.changed()
    assert subject.digest == digest
    assert not (tmp_path / "edit").exists()


def test_batches_of_forget_rows_have_two_or_more(
    subject: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def seen(s: Tensor, s_f: Tensor, temperature: float) -> Tensor:
        sizes.append((len(s), len(s_f)))
        return alignment_loss(s, s_f, temperature)

    monkeypatch.setattr(laf, "alignment_loss", seen)
    request = request_with()
    nine = Request(forget=request.forget.select(range(9)), retain=request.retain)
    fit(subject, nine, tmp_path, vae_epochs=20)
    assert set(sizes) == {(8, 8)}, "nine rows in batches of eight leave no batch of one"
    lone = Request(forget=request.forget.select([0]), retain=request.retain)
    with pytest.raises(RequestError, match="laf with 1 forget row"):
        fit(subject, lone, tmp_path / "lone")
    with pytest.raises(ConfigError, match="batch_size=1"):
        METHOD.configure({"batch_size": 1})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lr_ue": 0, "lr_ra": 0}, "both 0"),
        ({"scope": "lora"}, "all or layers"),
        ({"scope": "mask"}, "all or layers"),
        ({"norm_statistics": "move"}, "evaluation mode"),
        ({"norm_statistics": "auto"}, "evaluation mode"),
        ({"micro_batch_size": 4}, "micro_batch_size"),
    ],
)
def test_settings_that_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        METHOD.configure(values)


class Tied(nn.Module):
    """The head's weight is also the layer below it."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.middle, self.head = nn.Linear(6, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.middle.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.below(x).relu()))


class Beside(nn.Module):
    """The outputs are not the head's alone."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.head = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.below(x).relu()) + 3 * x[:, :3]


class Grid(nn.Module):
    """The head is given a matrix for each input."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.head = nn.Linear(6, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.below(x).view(-1, 3, 4)).mean(1)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Tied, "shares weights with 'middle'"),
        (Beside, "not what its head 'head' says"),
        (Grid, r"one vector an input, \[B, D\]"),
        (lambda: nn.Sequential(nn.Linear(6, 3)), "a head alone"),
    ],
    ids=["tied", "beside", "grid", "alone"],
)
def test_models_without_a_separable_head_are_refused(
    model: Callable[[], nn.Module], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=words):
        fit(trained(model()), request_with(), tmp_path)
    assert not (tmp_path / "edit").exists()


@pytest.mark.parametrize("kind", ["causal-lm", "regressor"])
def test_other_kinds_are_refused_by_the_card(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"laf on a {kind}; expected a classifier"):
        fit(SimpleNamespace(kind=kind), request_with(), tmp_path)
    with pytest.raises(RequestError, match="laf without a retain set"):
        fit(classifier(), Request(forget=request_with().forget), tmp_path)
