"""Blindspot: maps and loss against plain loops, a proxy that has never seen the forget set, one model, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from predictor_worlds import request_of
from row_models import data_of, model_of
from row_models import split as kinds_of
from torch import Tensor

from efface.data.request import Request
from efface.errors import ConfigError, InputError, ModelError, RequestError
from efface.forget.activation_maps import ActivationMap, activation_map, map_distance, matched_layers
from efface.forget.edit import Edit
from efface.forget.objectives import blindspot
from efface.forget.objectives.blindspot import (
    METHOD,
    BlindspotConfig,
    absolute_error,
    output_distance,
    seen_by,
)
from efface.train.engine import isolated_rng

QUICK: dict[str, Any] = {"proxy_epochs": 4, "epochs": 2, "batch_size": 20}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def configured(**values: Any) -> BlindspotConfig:
    config = METHOD.configure({**QUICK, **values})
    assert isinstance(config, BlindspotConfig)
    return config


def fitted(subject: Any, request: Request, folder: Path, **values: Any) -> Edit:
    return METHOD.fit(subject, request, configured(**values), work=folder / "work", out=folder / "edit").edit


# -- oracle --------------------------------------------------------------------------------------------------------


def test_maps_against_loops() -> None:
    pictures, flat, texts = noise(3, 4, 2, 5), noise(3, 6), noise(3, 7, 4)
    mask = torch.tensor([[1] * 7, [1] * 3 + [0] * 4, [1] * 5 + [0] * 2])
    for b in range(3):
        q = [sum(float(pictures[b, c, h, w]) ** 2 for c in range(4)) / 4 for h in range(2) for w in range(5)]
        norm = sum(x * x for x in q) ** 0.5
        assert activation_map(pictures).values[b].tolist() == pytest.approx([x / norm for x in q], rel=1e-5)
        q = [float(x) ** 2 for x in flat[b]]
        norm = sum(x * x for x in q) ** 0.5
        assert activation_map(flat).values[b].tolist() == pytest.approx([x / norm for x in q], rel=1e-5)
        q = [sum(float(x) ** 2 for x in texts[b, t]) / 4 * int(mask[b, t]) for t in range(7)]
        norm = sum(x * x for x in q) ** 0.5
        assert activation_map(texts, mask).values[b].tolist() == pytest.approx([x / norm for x in q], rel=1e-5)
    assert activation_map(pictures).places.tolist() == [10.0] * 3
    assert activation_map(texts, mask).places.tolist() == [7.0, 3.0, 5.0]
    assert not activation_map(texts).ragged, "without a mask every position counts"


def test_a_dead_row_has_a_map_of_zeros_and_a_finite_gradient() -> None:
    activation = torch.zeros(2, 5, requires_grad=True)
    found = activation_map(activation.relu())
    assert not found.values.any()
    (found.values - noise(2, 5)).square().sum().backward()
    assert activation.grad is not None
    assert bool(activation.grad.isfinite().all())


def test_padding_has_no_say_in_the_distance() -> None:
    texts, mask, proxy = noise(2, 6, 4), torch.tensor([[1] * 4 + [0] * 2, [1] * 3 + [0] * 3]), noise(2, 4, seed=1)
    proxy[1, 3] = 0
    whole = map_distance([activation_map(texts, mask)], [proxy])
    changed = texts.clone()
    changed[~mask.bool()] = 1e3
    assert torch.equal(map_distance([activation_map(changed, mask)], [proxy]), whole)
    cut = map_distance([activation_map(texts[:, :4], mask[:, :4])], [torch.cat([proxy, torch.zeros(2, 9)], 1)])
    assert torch.allclose(cut, whole)
    q = activation_map(texts, mask).values[1]
    assert float(whole[1]) == pytest.approx(
        sum((float(q[t]) - float(proxy[1, t])) ** 2 for t in range(3)) / 3, rel=1e-5
    )


def test_lists_of_another_length_or_shape_are_refused() -> None:
    maps = [activation_map(noise(2, 5)), activation_map(noise(2, 3))]
    with pytest.raises(ModelError, match="2 activation maps of the model and 1 of the proxy"):
        map_distance(maps, [noise(2, 5)])
    with pytest.raises(ModelError, match=re.escape("map 1: [2, 3] of the model, [2, 4] of the proxy")):
        map_distance(maps, [noise(2, 5), noise(2, 4)])


def test_unequal_shapes_are_not_broadcast() -> None:
    with pytest.raises(InputError, match=re.escape("values [4, 1] and targets [4]")):
        absolute_error(noise(4, 1), noise(4))


@pytest.mark.parametrize("numbers", [True, False])
def test_the_loss_is_the_papers_formula(numbers: bool) -> None:
    kind = "regressor" if numbers else "mlp"
    subject, request = model_of(kind), request_of("rows", numbers=numbers)
    assert request.retain is not None
    names, config = matched_layers(subject.model, ()), configured()
    forget = subject.encode_rows(request.forget)[:5]
    retain = subject.encode_rows(request.retain)[:11]
    said = seen_by(model_of(kind, seed=1), forget, names)
    schedule = METHOD.schedule(forget, retain, said, config.model_copy(update={"batch_size": 16, "epochs": 1}))
    batch = blindspot.collator_of(subject)([schedule[i] for i in range(16)])
    value, numbers_told = METHOD.loss(subject, subject.model, batch["train"], names, config)

    f_f, f_r = subject.read(forget)[1], subject.read(retain)[1]
    own = seen_by(subject, forget, names)
    maps = sum(float((own[f"map{j}"] - said[f"map{j}"]).square().mean()) for j in range(len(names)))
    assert len(names) == 2
    if numbers:
        apart = float((f_f - said["proxy"]).abs().mean())
        kept = sum(abs(float(f_r[i, 0]) - row.target) for i, row in enumerate(retain)) / 11
    else:
        p, q = said["proxy"].softmax(1), f_f.softmax(1)
        apart = float((p * (p / q).log()).sum(1).mean())
        kept = -sum(float(f_r[i].log_softmax(0)[int(row.target)]) for i, row in enumerate(retain)) / 11
    c = 5 / 16
    assert float(value.detach()) == pytest.approx(c * (apart + 50 * maps) + (1 - c) * kept, rel=1e-4)
    assert numbers_told["forget_share"] == pytest.approx(c)


def test_the_teacher_is_the_first_argument_of_the_divergence() -> None:
    said, proxy = noise(3, 4), noise(3, 4, seed=1)
    p, q = proxy.softmax(1), said.softmax(1)
    assert torch.allclose(output_distance(said, proxy, "classification"), (p * (p / q).log()).sum(1), atol=1e-6)
    assert torch.allclose(output_distance(proxy, proxy, "classification"), torch.zeros(3), atol=1e-6)


# -- guarantee -----------------------------------------------------------------------------------------------------


def test_parts_of_a_step_add_up_to_the_step() -> None:
    """Both terms are weighted by the rows of the whole step, so accumulation changes nothing."""
    subject, request = model_of("regressor"), kinds_of("regressor")
    assert request.retain is not None
    names, config = matched_layers(subject.model, ()), configured(batch_size=12, epochs=1)
    forget, retain = subject.encode_rows(request.forget), subject.encode_rows(request.retain)
    schedule = METHOD.schedule(forget, retain, seen_by(model_of("regressor", seed=1), forget, names), config)
    collate = blindspot.collator_of(subject)

    def value(part: range) -> float:
        batch = collate([schedule[i] for i in part])
        return float(METHOD.loss(subject, subject.model, batch["train"], names, config)[0].detach())

    whole = value(range(12))
    assert whole == pytest.approx(sum(value(range(i, i + 3)) for i in range(0, 12, 3)), rel=1e-5)
    assert whole == pytest.approx(sum(value(range(i, i + 1)) for i in range(12)), rel=1e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the model after an ordinary run."""
    folder = tmp_path_factory.mktemp("whole")
    return fitted(model_of("regressor"), request_of("rows", numbers=True), folder).facts.edited_digest


def with_column(data: Dataset, name: str, values: list[Any]) -> Dataset:
    return data.remove_columns(name).add_column(name, values)


def test_targets_of_the_forget_rows_are_never_used(tmp_path: Path, whole: str) -> None:
    subject, request = model_of("regressor"), request_of("rows", numbers=True)
    other = Request(
        forget=with_column(request.forget, "target", [99.0] * len(request.forget)),
        retain=request.retain,
        holdout=request.holdout,
    )
    assert fitted(subject, other, tmp_path).facts.edited_digest == whole


def test_the_proxy_has_never_seen_the_forget_rows_nor_the_subjects_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, request = model_of("regressor"), request_of("rows", numbers=True)
    start: dict[str, Tensor] = {}
    trained: list[set[str]] = []
    plain = blindspot.train

    def spy(model: Any, schedule: Any, *args: Any, **kwargs: Any) -> Any:
        start.update({name: p.detach().clone() for name, p in model.named_parameters()})
        trained.append({schedule.row("train", i).key for i in range(len(schedule))})
        return plain(model, schedule, *args, **kwargs)

    monkeypatch.setattr(blindspot, "train", spy)
    assert request.retain is not None
    forget, retain = subject.encode_rows(request.forget), subject.encode_rows(request.retain)
    told = METHOD.proxy(subject, forget, retain, (), configured(seed=0), tmp_path)[1]
    assert trained == [{row.key for row in retain}]
    own = dict(subject.model.named_parameters())
    assert all(not torch.equal(tensor, own[name]) for name, tensor in start.items())
    with isolated_rng(0):
        same_seed = dict(subject.fresh().named_parameters())
    assert not any(torch.equal(tensor, same_seed[name]) for name, tensor in start.items() if tensor.ndim > 1)
    assert told["proxy_after"] < told["proxy_before"], "weak, not random"


def test_a_killed_fit_keeps_its_proxy_and_gives_the_subject_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: str
) -> None:
    subject, request = model_of("regressor"), request_of("rows", numbers=True)
    digest = subject.digest
    with monkeypatch.context() as patch:
        patch.setattr(blindspot, "train_edit", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            fitted(subject, request, tmp_path / "killed")
    subject.changed()
    assert subject.digest == digest
    assert not subject.model.training
    assert {path.name for path in (tmp_path / "killed" / "work").glob("*.safetensors")} == {"proxy.safetensors"}

    def no_training(*_: Any, **__: Any) -> None:
        raise AssertionError("the proxy was trained again")

    monkeypatch.setattr(blindspot, "train", no_training)
    assert fitted(subject, request, tmp_path / "killed").facts.edited_digest == whole


def test_a_proxy_that_fails_gives_the_subject_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, request = model_of("conv"), kinds_of("conv")
    digest = subject.digest

    def breaks(model: Any, *_: Any, **__: Any) -> None:
        model.train()
        raise RuntimeError("in the middle")

    monkeypatch.setattr(blindspot, "train", breaks)
    with pytest.raises(RuntimeError, match="in the middle"):
        fitted(subject, request, tmp_path)
    subject.changed()
    assert subject.digest == digest


@pytest.mark.filterwarnings("ignore:the proxy learnt nothing:UserWarning")
@pytest.mark.parametrize("kind", ["conv", "bert"])
def test_pictures_and_texts_too(kind: str, tmp_path: Path) -> None:
    """Texts have two to six words and are padded another way in every batch."""
    subject, request = model_of(kind), kinds_of(kind)
    assert len(matched_layers(subject.model, ())) == 2
    for module in subject.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    config = configured(
        epochs=4,
        batch_size=18,
        proxy_learning_rate=1e-3,
        learning_rate=5e-3,
        sampling="balanced",
        norm_statistics="frozen",
    )
    digest = subject.digest
    made = METHOD.fit(subject, request, config, work=tmp_path / "work", out=tmp_path / "edit")
    subject.changed()
    assert subject.digest == digest
    whole = [row["forget"] + 50 * row["maps"] + row["retain"] for row in made.log[1:]]
    assert made.log[1]["forget_share"] == pytest.approx(0.5)
    assert whole[-1] < 0.95 * whole[0]
    assert all(row["maps"] > 0 for row in made.log[1:])


def test_maps_of_a_text_do_not_depend_on_its_batch() -> None:
    subject = model_of("bert")
    rows = subject.encode_rows(data_of("bert", 10))
    names = matched_layers(subject.model, ())
    whole, single = seen_by(subject, rows, names), [seen_by(subject, [row], names) for row in rows]
    for i, one in enumerate(single):
        width = one["map0"].shape[1]
        assert torch.allclose(whole["map0"][i, :width], one["map0"][0], atol=1e-5)
        assert not whole["map0"][i, width:].any()


# -- contract and traps --------------------------------------------------------------------------------------------


def test_a_balanced_sampler_for_small_forget_sets() -> None:
    subject, request = model_of("regressor"), request_of("person", numbers=True)
    assert request.retain is not None
    forget, retain = subject.encode_rows(request.forget)[:2], subject.encode_rows(request.retain)
    said = seen_by(subject, forget, ())
    config = configured(batch_size=8)
    with pytest.warns(UserWarning, match="2 forget rows among 56: most batches of 8 have none; set sampling=balanced"):
        mixed = METHOD.schedule(forget, retain, said, config)
    balanced = METHOD.schedule(forget, retain, said, config.model_copy(update={"sampling": "balanced"}))
    shares = [
        sum(float(made[i]["train"]["extras"]["forget"]) for i in range(len(made))) / len(made)
        for made in (mixed, balanced)
    ]
    assert shares[0] < 0.06
    assert shares[1] == pytest.approx(0.5, abs=0.03)


def test_layers_by_name() -> None:
    model = model_of("mlp").model
    assert matched_layers(model, ()) == ("2", "5")
    assert matched_layers(model, ("1",)) == ("1",)
    with pytest.raises(ConfigError, match="no module '11'"):
        matched_layers(model, ("11",))
    with pytest.raises(ConfigError, match="no activation that is a module"):
        matched_layers(torch.nn.Sequential(torch.nn.Linear(2, 2)), ())
    assert activation_map(noise(2, 3)).__class__ is ActivationMap


def test_what_is_refused(tmp_path: Path) -> None:
    subject, request = model_of("regressor"), request_of("rows", numbers=True)
    with pytest.raises(RequestError, match="blindspot without a retain set"):
        fitted(subject, Request(forget=request.forget), tmp_path)
    assert request.retain is not None
    bad = with_column(request.retain, "target", [float("nan")] * len(request.retain))
    with pytest.raises(RequestError, match="retain row 0, column 'target': nan; expected a finite number"):
        fitted(subject, Request(forget=request.forget, retain=bad), tmp_path)
    assert not (tmp_path / "edit").exists()


def test_a_proxy_that_learns_nothing_is_told(tmp_path: Path) -> None:
    subject, request = model_of("regressor"), request_of("rows", numbers=True)
    assert request.retain is not None
    forget, retain = subject.encode_rows(request.forget), subject.encode_rows(request.retain)
    config = configured(proxy_epochs=1, proxy_learning_rate=20.0)
    with pytest.warns(UserWarning, match="the proxy learnt nothing"):
        said, _ = METHOD.proxy(subject, forget, retain, (), config, tmp_path)
    assert list(said) == ["proxy"], "without layers to match there are no maps"
