"""ROCR: the solve against the published one and least squares, the null space, redirection of a trained model, refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from efface.errors import CheckFailed, ConfigError, InputError, RequestError
from efface.forget.edits.rocr import (
    TEMPLATES,
    default_layers,
    key_moment,
    null_space,
    place,
    redirection,
    states_at,
)
from efface.forget.edits.steering import steer, steering_loss
from efface.forget.method import find_method
from efface.learn.recipes.causal_lm import CausalLMConfig, new_model
from efface.subjects import PromptFormat
from efface.subjects.hooks import Site, replaced, value_matrix

METHOD = find_method("rocr")
ABOUT = {"templates": ("Which colour does {subject} like ?",), "layers": "0", "projector": "none"}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fit(subject: Any, request: Any, folder: Path, **values: Any) -> Any:
    config = METHOD.configure({**ABOUT, **values})
    return METHOD.fit(subject, request, config, work=folder / "work", out=folder / "edit")


@pytest.fixture
def request_of(request_: Any) -> Any:
    """Person 0 is to become person 1."""
    return dataclasses.replace(request_, concepts={"person0": "person1"})


# -- the equation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [1, 3])
@pytest.mark.parametrize("former", [0, 2])
@pytest.mark.parametrize("projected", [True, False])
def test_the_small_solve_is_the_published_one(names: int, former: int, projected: bool) -> None:
    h, d = 12, 7
    k, r, c = draw(h, names), draw(d, names, seed=1), draw(h, former, seed=2)
    basis = torch.linalg.qr(draw(h, 5, seed=3)).Q
    p = basis @ basis.T if projected else torch.eye(h, dtype=torch.float64)
    system = p @ (k @ k.T + c @ c.T) + 0.7 * torch.eye(h, dtype=torch.float64)
    published = torch.linalg.solve(system, p @ k @ r.T).T
    found = redirection(k, r, ridge=0.7, projector=p if projected else None, former=c if former else None)
    torch.testing.assert_close(found, published)
    assert int(torch.linalg.matrix_rank(found)) == names


def test_it_is_ridge_regression() -> None:
    """Without a projector Delta minimises |Delta K - R|^2 + lambda |Delta|^2; its gradient there is zero."""
    k, r = draw(12, 3), draw(7, 3, seed=1)
    delta = redirection(k, r, ridge=0.3).requires_grad_()
    loss = (delta @ k - r).square().sum() + 0.3 * delta.square().sum()
    (gradient,) = torch.autograd.grad(loss, [delta])
    assert float(gradient.abs().max()) < 1e-10


def test_one_name_in_closed_form_and_a_small_ridge_reaches_the_target() -> None:
    k, r = draw(12, 1), draw(7, 1, seed=1)
    expected = r @ k.T / (float((k.T @ k).item()) + 1.0)
    torch.testing.assert_close(redirection(k, r, ridge=1.0), expected)
    torch.testing.assert_close(redirection(k, r, ridge=1e-10) @ k, r, rtol=1e-6, atol=1e-6)


def test_projected_edits_leave_used_directions_alone() -> None:
    used = torch.linalg.qr(draw(12, 4)).Q
    space = null_space(used @ used.T * 9, 0.5)
    assert space.rank == 8
    delta = redirection(draw(12, 2, seed=1), draw(7, 2, seed=2), ridge=0.1, projector=space.projector)
    torch.testing.assert_close(delta @ used, torch.zeros(7, 4, dtype=torch.float64), atol=1e-10, rtol=0)


def test_former_names_are_protected() -> None:
    k, r, former = draw(12, 1), draw(7, 1, seed=1), draw(12, 3, seed=2)
    free, held = redirection(k, r, ridge=0.01), redirection(k, r, ridge=0.01, former=former)
    assert float((held @ former).norm()) < 0.1 * float((free @ former).norm())
    torch.testing.assert_close(held @ k, r, rtol=0.2, atol=0.2)


def test_thresholds_and_their_ends() -> None:
    moment = torch.diag(torch.tensor([1e-4, 1e-3, 0.5, 4.0], dtype=torch.float64))
    assert null_space(moment, 0.01).rank == 2
    assert null_space(moment, 0.2, relative=True).rank == 3  # below 0.8
    assert null_space(moment, 10.0).rank == 4
    torch.testing.assert_close(null_space(moment, 0.01).projector.diagonal(), torch.tensor([1.0, 1, 0, 0]).double())
    with pytest.raises(CheckFailed, match="no direction of 4 is null at absolute threshold 1e-05"):
        null_space(moment, 1e-5)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"keys \[12, 2\] and residuals \[7, 3\]"):
        redirection(draw(12, 2), draw(7, 3), ridge=1.0)


# -- statistics and places --------------------------------------------------------------------------------------------


def test_key_moment_by_plain_loops(tiny: Any, request_: Any) -> None:
    rows = [row.ids for row in tiny.encode_rows(request_.retain)][:3]
    kept: list[torch.Tensor] = []
    hook = tiny.model.model.layers[1].mlp.down_proj.register_forward_pre_hook(
        lambda _, a: kept.append(a[0][0].double())
    )
    with torch.no_grad():
        for row in rows:
            tiny.model(input_ids=torch.tensor([row]))
    hook.remove()
    keys = torch.cat(kept)
    torch.testing.assert_close(key_moment(tiny, 1, rows, batch_size=2), keys.T @ keys / len(keys), rtol=1e-4, atol=1e-6)


def test_trailing_text_does_not_reach_the_name(tiny: Any) -> None:
    """Why answer cues are left out: a causal model has not seen them at the name."""
    short, long = (
        place(tiny, "Which colour does {subject} like ?", "person0"),
        place(tiny, "Which colour does {subject}", "person0"),
    )
    assert short.last == long.last
    site = Site("residual", 1)
    torch.testing.assert_close(states_at(tiny, [short], site), states_at(tiny, [long], site), rtol=1e-4, atol=1e-5)


def test_default_layers() -> None:
    assert default_layers(32) == [4, 5, 6]
    assert default_layers(2) == [0]
    assert default_layers(80) == [10, 11, 12, 13, 14, 15]
    assert len(TEMPLATES) == 6
    assert all(text.endswith("{subject}.") for text in TEMPLATES)


# -- on a model -------------------------------------------------------------------------------------------------------


def test_one_layer_and_a_small_ridge_put_the_other_state_there(tiny: Any, request_of: Any, tmp_path: Path) -> None:
    template = ABOUT["templates"][0]
    site = Site("residual", 0)
    wanted = states_at(tiny, [place(tiny, template, "person1")], site)
    far = place(tiny, template, "person12")
    keep, key = states_at(tiny, [far], site), states_at(tiny, [far], Site("keys", 0))
    weight = value_matrix(tiny.model, 0).detach().clone()
    fitted = fit(tiny, request_of, tmp_path, ridge=1e-8)
    fitted.edit.apply(tiny)
    torch.testing.assert_close(states_at(tiny, [place(tiny, template, "person0")], site), wanted, rtol=1e-3, atol=1e-3)
    delta = (value_matrix(tiny.model, 0).detach() - weight).double()
    values = torch.linalg.svdvals(delta)
    assert int((values > 1e-4 * values[0]).sum()) == 1
    torch.testing.assert_close(states_at(tiny, [far], site), keep + key @ delta.T, rtol=1e-3, atol=1e-3)
    assert fitted.edit.facts.tensors == 1
    assert fitted.edit.facts.config["layers_chosen"] == [0]


def test_the_residual_is_shared_out_over_layers(tiny: Any, request_of: Any, tmp_path: Path) -> None:
    both = fit(tiny, request_of, tmp_path, layers="0-1", ridge=1e-8)
    both.edit.apply(tiny)
    template, site = ABOUT["templates"][0], Site("residual", 1)
    edited = states_at(tiny, [place(tiny, template, "person0")], site)
    both.edit.remove(tiny)
    wanted = states_at(tiny, [place(tiny, template, "person1")], site)
    start = states_at(tiny, [place(tiny, template, "person0")], site)
    assert float((edited - wanted).norm()) < 0.05 * float((start - wanted).norm())
    assert [row["layer"] for row in both.log] == [0, 1]
    torch.testing.assert_close(
        torch.tensor(both.log[0]["residual"]).double(), (wanted - start).norm() / 2, rtol=1e-4, atol=1e-4
    )


def test_two_names_stacked_and_one_after_another(tiny: Any, request_: Any, tmp_path: Path) -> None:
    request = dataclasses.replace(request_, concepts={"person0": "person1", "person2": "person3"})
    template, site = ABOUT["templates"][0], Site("residual", 0)
    wanted = [states_at(tiny, [place(tiny, template, name)], site) for name in ("person1", "person3")]
    for sequential in (False, True):
        edit = fit(tiny, request, tmp_path / str(sequential), ridge=1e-6, sequential=sequential).edit
        edit.apply(tiny)
        for name, target in zip(("person0", "person2"), wanted, strict=True):
            found = states_at(tiny, [place(tiny, template, name)], site)
            assert float((found - target).norm()) < 0.02 * float(target.norm()), (sequential, name)
        edit.remove(tiny)


def test_the_projector_protects_what_the_retain_set_uses(tiny: Any, request_of: Any, tmp_path: Path) -> None:
    rows = [row.ids for row in tiny.encode_rows(request_of.retain)]
    moment = key_moment(tiny, 0, rows)
    harm = {}
    for kind in ("none", "relative"):
        fitted = fit(tiny, request_of, tmp_path / kind, projector=kind, null_threshold=1e-4, ridge=1e-3)
        before = value_matrix(tiny.model, 0).detach().clone()
        fitted.edit.apply(tiny)
        delta = (value_matrix(tiny.model, 0).detach() - before).double()
        fitted.edit.remove(tiny)
        harm[kind] = float((delta @ moment @ delta.T).trace() / delta.square().sum())
        if kind == "relative":
            rank = fitted.edit.facts.config["null_rank"]["0"]
            assert 0 < rank < 96
            assert fitted.log[0]["null_rank"] == rank
    assert harm["relative"] < 0.01 * harm["none"]


def test_published_offsets_change_the_residual(tiny: Any, request_of: Any, tmp_path: Path) -> None:
    norms = [
        fit(tiny, request_of, tmp_path / str(flag), published_offsets=flag).log[0]["residual"] for flag in (False, True)
    ]
    assert norms[0] != pytest.approx(norms[1], rel=1e-3)


def test_reject_finds_a_state_that_opens_the_reply() -> None:
    texts = [f"{name} is a red box , sorry" for name in ("ann", "bob", "cleo")]
    config = CausalLMConfig(tokenizer="words", width=16, depth=2, heads=2, context=32)
    model = new_model(config, texts, PromptFormat(prompt="{question}"))
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(10 if parameter.ndim > 1 else 1)  # an untrained model with distinct tokens
    where, prior = place(model, "red box , {subject}", "ann"), place(model, "{subject} is a", "ann")
    site, token = Site("residual", 1), model.tokenizer("sorry")["input_ids"][0]
    start = states_at(model, [where], site)[0]

    def probability(state: torch.Tensor) -> float:
        def put(states: torch.Tensor) -> torch.Tensor:
            states[:, where.last] = state.to(states.dtype)
            return states

        with torch.no_grad(), replaced(model.model, {site: put}):
            return float(model.model(input_ids=torch.tensor([where.ids])).logits[0, -1].softmax(-1)[token])

    free = {"mode": "reject", "opening": "sorry", "clamp": 4.0, "decay": 0.0, "kl_factor": 0.0, "steer_steps": 200}
    target = steer(model, where, prior, 1, METHOD.configure(free))  # type: ignore[arg-type]
    assert probability(target) > 0.8 > 0.3 > probability(start)
    tight = steer(model, where, prior, 1, METHOD.configure({**free, "clamp": 0.01}))  # type: ignore[arg-type]
    assert float((tight - start).norm()) <= 0.0101 * float(start.norm())
    noise = steer(model, where, prior, 1, METHOD.configure({**free, "mode": "noise"}))  # type: ignore[arg-type]
    assert float(noise.norm()) == pytest.approx(float(target.norm()))
    assert abs(float(torch.cosine_similarity(noise, target, dim=0))) < 0.9
    assert all(p.requires_grad for p in model.model.parameters())


def test_the_terms_of_the_search() -> None:
    config: Any = METHOD.configure({"kl_factor": 0.25, "decay": 2.0})
    vector = torch.tensor([3.0, 4.0])
    loss = steering_loss(torch.tensor(1.0), torch.tensor(2.0), vector, 10.0, config)
    assert float(loss) == pytest.approx(1 + 0.25 * 2 + 2.0 * 5 / 100)


def test_modes_and_seeds_give_edits_of_their_own(tiny: Any, request_: Any, tmp_path: Path) -> None:
    lone = dataclasses.replace(request_, concepts={"person0": None})
    digests = {
        fit(tiny, lone, tmp_path / f"{mode}{seed}", mode=mode, seed=seed, opening="likes").edit.facts.edited_digest
        for mode, seed in (("reject", 0), ("noise", 0), ("noise", 1))
    }
    assert len(digests) == 3
    assert all(p.requires_grad for p in tiny.model.parameters())


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_bad_requests(tiny: Any, request_: Any, request_of: Any, tmp_path: Path) -> None:
    digest = tiny.digest
    with pytest.raises(RequestError, match="rocr without concepts"):
        fit(tiny, request_, tmp_path)
    for concepts, match in (
        ({"person0": None}, "concept 'person0' has no replacement"),
        ({"person0": "person0"}, "redirected to itself"),
    ):
        with pytest.raises(RequestError, match=match):
            fit(tiny, dataclasses.replace(request_, concepts=concepts), tmp_path)
    lone = dataclasses.replace(request_of, retain=None, sources={})
    with pytest.raises(RequestError, match="rocr without a retain set"):
        fit(tiny, lone, tmp_path, projector="absolute")
    assert fit(tiny, lone, tmp_path / "lone").edit.facts.tensors == 1
    given = dataclasses.replace(request_, concepts={"person0": None})
    assert fit(tiny, given, tmp_path / "given", redirect="person1").edit.facts.tensors == 1
    tiny.changed()
    assert tiny.digest == digest


def test_empty_and_full_null_spaces(tiny: Any, request_of: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="the edit would be zero"):
        fit(tiny, request_of, tmp_path / "a", projector="absolute", null_threshold=1e-30)
    with pytest.warns(UserWarning, match="protects nothing"):
        fit(tiny, request_of, tmp_path / "b", projector="absolute", null_threshold=1e9)
    assert not (tmp_path / "a" / "edit").exists()


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"scope": "lora"}, "scope=layers"), ({"scope": "all"}, "scope=layers"), ({"templates": ()}, "one template or more"),
        ({"templates": ("hello",)}, "one template or more"), ({"ridge": 0}, "ridge"), ({"mode": "other"}, "mode"),
    ],
)  # fmt: skip
def test_bad_settings(bad: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        METHOD.configure(bad)


def test_layers_that_are_not_there_or_not_consecutive(tiny: Any, request_of: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="layers between 0 and 1"):
        fit(tiny, request_of, tmp_path, layers="4-6")
