"""SSD: importances and dampening against loops, the shared cache, and the traps of the specification."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from predictor_worlds import predictor, request_of
from row_models import KINDS, by_hand, close, data_of, mean_of, model_of, split
from torch import Tensor

from efface.data.request import Request
from efface.errors import CheckFailed, ConfigError, InputError, ModelError, RequestError
from efface.forget.edits import row_gradients
from efface.forget.edits.ssd import MANY, SSDConfig, canonical_order, dampening, excluded, importance, output_norm
from efface.forget.method import Fitted, find_method
from efface.run.files import read_json
from efface.subjects.factory import FactoryForm
from efface.subjects.predictor import Predictor
from efface.train import gradient_stats
from efface.train.gradient_stats import mean_nll

METHOD = find_method("ssd")
pytestmark = pytest.mark.filterwarnings("ignore:ssd selects :UserWarning")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))


def fit(subject: Any, request: Any, folder: Path, **values: Any) -> Fitted:
    config = METHOD.configure({"alpha": 1.3, **values})
    return METHOD.fit(subject, request, config, work=folder / "work", out=folder / "edit")


def config_of(**values: Any) -> SSDConfig:
    config = METHOD.configure(values)
    assert isinstance(config, SSDConfig)
    return config


def names_of(subject: Any) -> list[str]:
    return [name for name, _ in subject.model.named_parameters()]


# -- importances ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", ["labels", "outputs"])
def test_importance_of_rows_is_the_loop_over_single_rows(kind: str, loss: Any) -> None:
    """Linear, convolution with batch norm, a BERT on texts of different lengths, and a regressor; dropout is off."""
    subject = model_of(kind)
    rows = subject.encode_rows(data_of(kind))
    if kind == "bert":
        assert len({row.make()["input_ids"].shape for row in rows}) > 2
    subject.model.train()
    made = importance(subject, rows, config_of(loss=loss), names_of(subject))
    assert subject.model.training
    single = by_hand(subject, [[row] for row in rows], mean_nll if loss == "labels" else output_norm)
    raised = [{name: g.square() if loss == "labels" else g.abs() for name, g in part.items()} for part in single]
    close(made.tensors, mean_of(raised))
    assert (made.per, made.batch_size, made.rows) == ("sample", 1, len(rows))


@pytest.mark.parametrize("kind", ["mlp", "bert"])
@pytest.mark.parametrize("loss", ["labels", "outputs"])
def test_importance_of_batches_is_the_published_one_in_canonical_order(kind: str, loss: Any) -> None:
    """Square of the batch mean, every batch counts one, the last short one too."""
    subject = model_of(kind)
    rows = subject.encode_rows(data_of(kind))
    made = importance(subject, rows, config_of(loss=loss, estimator="batch", batch_size=5), names_of(subject))
    ordered = canonical_order(rows)
    parts = by_hand(subject, [ordered[i : i + 5] for i in (0, 5, 10)], mean_nll if loss == "labels" else output_norm)
    close(
        made.tensors, mean_of([{n: g.square() if loss == "labels" else g.abs() for n, g in p.items()} for p in parts])
    )
    assert made.batch_size == 5


def test_batches_are_no_fisher_diagonal() -> None:
    """The published estimator falls with the batch size: alpha means nothing without it."""
    subject = model_of("mlp")
    rows = subject.encode_rows(data_of("mlp"))
    found = {
        size: importance(subject, rows, config_of(estimator="batch", batch_size=size), names_of(subject)).mean()
        for size in (1, 12)
    }
    exact = importance(subject, rows, config_of(), names_of(subject)).mean()
    assert found[1] == pytest.approx(exact, rel=1e-4)
    assert found[12] < 0.6 * found[1]


def test_of_low_precision_the_squares_are_float32(tiny: Any, request_: Any) -> None:
    """Squares of small half-precision gradients would be 0."""
    tiny.model.to(torch.bfloat16)
    tiny.changed()
    found = importance(tiny, tiny.encode_rows(request_.forget)[:2], config_of(), names_of(tiny))
    assert all(value.dtype == torch.float32 for value in found.tensors.values())


@pytest.mark.parametrize("estimator", ["sample", "batch"])
def test_order_and_split_change_no_bit(estimator: str) -> None:
    subject = model_of("mlp")
    rows = subject.encode_rows(data_of("mlp"))
    config = config_of(estimator=estimator, batch_size=5)
    first = importance(subject, rows, config, names_of(subject))
    again = importance(subject, [*rows[7:], *rows[:7][::-1]], config, names_of(subject))
    assert first.data == again.data
    assert all(torch.equal(value, again.tensors[name]) for name, value in first.tensors.items())


@pytest.mark.parametrize("loss", ["labels", "outputs"])
def test_a_second_request_on_the_same_data_costs_its_forget_set_alone(
    loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    inner = gradient_stats.stacked

    def counted(subject: Any, rows: Any) -> Any:
        seen.append(len(rows))
        return inner(subject, rows)

    monkeypatch.setattr(gradient_stats, "stacked", counted)
    monkeypatch.setattr(row_gradients, "stacked", counted)
    subject = model_of("mlp")

    def cost(request: Any, name: str, **values: Any) -> int:
        seen.clear()
        fit(subject, request, tmp_path / name, loss=loss, **values)
        return sum(seen)

    assert cost(split("mlp", (0, 3, 6)), "first") == 3 + 12
    assert cost(split("mlp", (1, 4)), "second") == 2
    assert cost(split("mlp", (1, 4)), "other alpha", alpha=1.1, dampening=0.5, exclude="bias") == 0
    # without the entries of the first request the second gives the same bits
    edited = [read_json(tmp_path / "second" / "edit" / "edit.json")["edited_digest"]]
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "fresh"))
    assert cost(split("mlp", (1, 4)), "anew") == 2 + 12
    edited.append(read_json(tmp_path / "anew" / "edit" / "edit.json")["edited_digest"])
    assert edited[0] == edited[1]
    # importances belong to a checkpoint
    with torch.no_grad():
        next(iter(subject.model.parameters())).mul_(1.01)
    subject.changed()
    assert cost(split("mlp", (1, 4)), "other model") == 2 + 12
    # and to their rows: a smaller D is another D
    smaller = split("mlp", (1, 4))
    assert smaller.retain is not None
    less = Request(forget=smaller.forget, retain=smaller.retain.select(range(8)))
    assert cost(less, "other data") == 10


def test_a_damaged_entry_of_the_loss_free_form_is_made_anew(tmp_path: Path) -> None:
    subject = model_of("regressor")
    rows = subject.encode_rows(data_of("regressor"))
    first = importance(subject, rows, config_of(loss="outputs"), names_of(subject))
    (path,) = (tmp_path / "cache" / "reference").glob("grad-*.safetensors")
    path.write_bytes(b"torn")
    again = importance(subject, rows, config_of(loss="outputs"), names_of(subject))
    assert all(torch.equal(value, again.tensors[name]) for name, value in first.tensors.items())


# -- the equation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "strength"), [(1.0, 1.0), (3.0, 0.2), (0.5, 4.0)])
def test_dampening_is_the_loop(alpha: float, strength: float) -> None:
    generator = torch.Generator().manual_seed(0)
    i_d, i_f = (torch.rand(7, 5, generator=generator) ** 4 for _ in range(2))
    i_d[0, :2], i_f[0, 0], i_f[1, 0] = 0.0, 0.0, 0.0  # 0 / 0, x / 0 and 0 / x
    found = dampening(i_d, i_f, alpha, strength)
    for i in range(7):
        for j in range(5):
            d, f = float(i_d[i, j]), float(i_f[i, j])
            chosen = f > alpha * d
            assert bool(found.selected[i, j]) == chosen
            assert float(found.beta[i, j]) == pytest.approx(min(strength * d / f, 1.0) if chosen else 1.0, rel=1e-5)
    assert not found.selected[0, 0]
    assert found.selected[0, 1]
    assert found.beta[0, 1] == 0, "what only the forget set uses goes to zero"


def test_dampening_refuses_what_are_no_importances() -> None:
    ones = torch.ones(3)
    with pytest.raises(InputError, match="one shape"):
        dampening(ones, torch.ones(2), 1.0)
    for bad in (float("nan"), float("inf"), -1.0):
        with pytest.raises(InputError, match="NaN, infinite or negative"):
            dampening(ones, torch.tensor([1.0, bad, 1.0]), 1.0)


@pytest.mark.parametrize("estimator", ["sample", "batch"])
def test_fit_is_the_formula_and_says_what_it_selected(estimator: str, tmp_path: Path) -> None:
    subject, request = model_of("conv"), split("conv")
    before = {name: p.detach().clone() for name, p in subject.model.named_parameters()}
    digest = subject.digest
    fitted = fit(subject, request, tmp_path, estimator=estimator, batch_size=4, dampening=0.7)
    subject.changed()
    assert subject.digest == digest

    def squares(rows: list[Any]) -> dict[str, Tensor]:
        rows = canonical_order(rows)
        size = 1 if estimator == "sample" else 4
        cut = [rows[i : i + size] for i in range(0, len(rows), size)]
        return mean_of([{n: g.square() for n, g in part.items()} for part in by_hand(subject, cut, mean_nll)])

    forget, retain = subject.encode_rows(request.forget), subject.encode_rows(request.retain)
    i_f, i_d = squares(forget), squares([*forget, *retain])
    fitted.edit.apply(subject)
    count = of = 0
    for name, p in subject.model.named_parameters():
        chosen = i_f[name] > 1.3 * i_d[name]
        beta = (0.7 * i_d[name] / i_f[name].clamp(min=1e-300)).clamp(max=1)
        expected = torch.where(chosen, before[name].double() * beta, before[name].double())
        assert torch.allclose(p.detach().double(), expected, rtol=2e-4, atol=1e-6), name
        assert torch.equal(p.detach()[~chosen], before[name][~chosen]), "what is not selected keeps its bits"
        count, of = count + int(chosen.sum()), of + chosen.numel()
    notes = read_json(fitted.edit.folder / "ssd.json")
    assert "ssd.json" in fitted.edit.facts.files, "the notes are checked with the edit"
    assert notes["selected_share"] == pytest.approx(count / of) == fitted.log[0]["selected_share"]
    assert sum(part["selected_share"] * part["of"] for part in notes["layers"].values()) == pytest.approx(count)
    assert 0 < notes["mean_beta"] < 1
    assert (notes["estimator"], notes["batch_size"]) == (estimator, 1 if estimator == "sample" else 4)
    assert (notes["rows"], notes["forget_rows"]) == (12, 3)
    fitted.edit.remove(subject)
    assert subject.digest == digest


def test_what_only_the_forget_set_uses_goes_and_nothing_else_does(tmp_path: Path) -> None:
    """A linear model whose classes use inputs of their own: the other classes' outputs keep every bit."""
    values = torch.zeros(30, 6)
    labels = [i % 3 for i in range(30)]
    for i, label in enumerate(labels):
        values[i, 2 * label : 2 * label + 2] = torch.tensor([1.0 + i / 30, 2.0 - i / 30])
    data = Dataset.from_dict({"id": [str(i) for i in range(30)], "features": values.tolist(), "label": labels})
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 3))
    with torch.no_grad():
        module[1].weight.copy_(torch.eye(3).repeat_interleave(2, 1))
    form = FactoryForm(factory="efface.subjects.networks:mlp", labels=("0", "1", "2"))
    subject = Predictor(module.eval(), form=form)
    gone = [i for i in range(30) if labels[i] == 1]
    request = Request(data.select(gone), data.select([i for i in range(30) if labels[i] != 1]))
    rows = {name: subject.encode_rows(getattr(request, name)) for name in ("forget", "retain")}
    before = {name: subject.read(part)[1] for name, part in rows.items()}
    fitted = fit(subject, request, tmp_path, alpha=1.5, dampening=0.01, exclude="bias")
    fitted.edit.apply(subject)
    assert torch.equal(subject.read(rows["retain"])[1], before["retain"])
    was, now = before["forget"][:, 1], subject.read(rows["forget"])[1][:, 1]
    bias = module[1].bias.detach()[1]
    assert torch.allclose(now - bias, (was - bias) * 0.01 / 3, atol=1e-5), "I_D is a third of I_f: beta = lambda / 3"
    assert fitted.log[0]["selected_share"] == pytest.approx(6 / 18)


# -- which weights ----------------------------------------------------------------------------------------------------


def test_frozen_and_excluded_weights_stay(tmp_path: Path) -> None:
    subject = model_of("conv")
    plain = fit(subject, split("conv"), tmp_path / "plain").edit
    frozen = next(name for name in names_of(subject) if name.endswith("weight"))
    subject.model.get_parameter(frozen).requires_grad_(False)
    edit = fit(subject, split("conv"), tmp_path / "own", exclude="norm,bias,5").edit
    assert not subject.model.get_parameter(frozen).requires_grad, "flags come back"
    assert all(p.grad is None for p in subject.model.parameters())
    norms = {f"1.{own}" for own in ("weight", "bias")}
    assert norms <= excluded(subject.model, names_of(subject), "norm")

    def moved(edit: Any) -> set[str]:
        before = {name: p.detach().clone() for name, p in subject.model.named_parameters()}
        edit.apply(subject)
        found = {name for name, p in subject.model.named_parameters() if not torch.equal(before[name], p.detach())}
        edit.remove(subject)
        return found

    assert {frozen, "1.weight", "5.weight"} <= moved(plain), "otherwise they would move"
    left = moved(edit)
    assert left
    assert not left & ({frozen, "5.weight"} | norms | {name for name in names_of(subject) if name.endswith("bias")})


def test_a_tied_weight_is_dampened_once(tiny: Any, request_: Any, tmp_path: Path) -> None:
    """The head of this model is its embedding: twice would be beta squared. A language model's rows work as others do."""
    embedding = tiny.model.model.embed_tokens.weight
    assert tiny.model.lm_head.weight is embedding
    before = embedding.detach().clone()
    names = names_of(tiny)
    edit = fit(tiny, request_, tmp_path).edit
    forget, retain = tiny.encode_rows(request_.forget), tiny.encode_rows(request_.retain)
    i_f, i_d = (
        importance(tiny, rows, config_of(), names).tensors["model.embed_tokens.weight"] for rows in (forget, [*forget, *retain])
    )  # fmt: skip
    expected = before * dampening(i_d, i_f, 1.3).beta
    edit.apply(tiny)
    assert torch.allclose(embedding.detach(), expected, rtol=1e-6, atol=0)
    assert not torch.equal(embedding.detach(), before)
    assert tiny.model.lm_head.weight is embedding


@pytest.mark.parametrize("loss", ["labels", "outputs"])
def test_regressors(loss: str, tmp_path: Path) -> None:
    subject = predictor(numbers=True)
    edit = fit(subject, request_of("rows", numbers=True), tmp_path, loss=loss).edit
    digest = subject.digest
    edit.apply(subject)
    edit.remove(subject)
    assert subject.digest == digest


# -- traps ------------------------------------------------------------------------------------------------------------


def test_alpha_at_the_ceiling_is_refused_and_below_it_is_not(tmp_path: Path) -> None:
    """I_D >= (n_f / n) I_f: forgetting 3 of 12 rows, nothing is selected from alpha = 4 on; batches have no ceiling."""
    subject = model_of("mlp")
    for alpha in (4.0, 10.0):
        with pytest.raises(ConfigError, match=r"3 of 12 rows.*below n / n_f = 4; try alpha=2"):
            fit(subject, split("mlp"), tmp_path, alpha=alpha)
    assert not (tmp_path / "edit").exists()
    rows = {name: subject.encode_rows(getattr(split("mlp"), name)) for name in ("forget", "retain")}
    i_f = importance(subject, rows["forget"], config_of(), names_of(subject)).tensors
    i_d = importance(subject, [*rows["forget"], *rows["retain"]], config_of(), names_of(subject)).tensors
    assert not any(bool(dampening(i_d[n] * (1 + 1e-5), i_f[n], 4.0).selected.any()) for n in i_f), "the ceiling is true"
    below = fit(subject, split("mlp"), tmp_path / "below", alpha=1.5)
    assert below.log[0]["selected_share"] > 0
    assert below.log[0]["alpha_ceiling"] == 4
    METHOD.check(split("mlp"), METHOD.configure({"alpha": 10, "estimator": "batch"}))


def test_nothing_selected_is_said(tmp_path: Path) -> None:
    subject = model_of("mlp")
    digest = subject.digest
    with pytest.raises(CheckFailed, match=r"for 0 of \d+ weights at alpha=1e\+06.*lower alpha"):
        fit(subject, split("mlp"), tmp_path, alpha=1e6, estimator="batch")
    with pytest.raises(CheckFailed, match="keep their size; lower dampening"):
        fit(subject, split("mlp"), tmp_path, dampening=100.0)
    assert not (tmp_path / "edit").exists()
    subject.changed()
    assert subject.digest == digest


def test_too_much_selected_is_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="ssd selects .* of the weights at alpha=0.01"):
        fitted = fit(model_of("mlp"), split("mlp"), tmp_path / "many", alpha=0.01)
    assert fitted.log[0]["selected_share"] > MANY
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        few = fit(model_of("mlp"), split("mlp"), tmp_path / "few", alpha=1.5)
    assert few.log[0]["selected_share"] <= MANY


def test_bad_input(tiny: Any, request_: Any, tmp_path: Path) -> None:
    subject, request = model_of("mlp"), split("mlp")
    with pytest.raises(RequestError, match="ssd without a retain set"):
        fit(subject, Request(forget=request.forget), tmp_path)
    with pytest.raises(ConfigError, match="loss=outputs of a causal-lm"):
        fit(tiny, request_, tmp_path, loss="outputs")
    with pytest.raises(ConfigError, match="'head' names no weight"):
        fit(subject, request, tmp_path, exclude="head")
    with pytest.raises(ConfigError, match="leaves no weight"):
        fit(subject, request, tmp_path, exclude="*")
    with pytest.raises(ConfigError, match="scope"):
        METHOD.configure({"scope": "lora"})
    with torch.no_grad():
        for p in subject.model.parameters():
            p.zero_()
    subject.changed()
    with pytest.raises(ModelError, match="no gradient reaches any weight"):
        fit(subject, request, tmp_path, loss="outputs")
    for p in subject.model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ConfigError, match="every weight within scope=all is frozen"):
        fit(subject, request, tmp_path)
