"""LoKU: an unchanged start, a change that is merged and reversible, its ablations and its traps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import efface
from efface.errors import ConfigError
from efface.forget.edit import Edit
from efface.forget.objectives.loku import METHOD, LoKUConfig, importance
from efface.run.files import read_json
from efface.train.lora_init import linear_targets

QUICK = {"learning_rate": 5e-3, "epochs": 2, "batch_size": 4, "lora_rank": 2}


def fit(subject: Any, request: Any, folder: Path, **more: Any) -> Edit:
    config = METHOD.configure({**QUICK, **more})
    return METHOD.fit(subject, request, config, work=folder / "work", out=folder / "edit").edit


@pytest.mark.parametrize("init", ["fila", "svd", "random"])
@pytest.mark.parametrize("compat", [False, True])
def test_the_network_starts_unchanged(init: str, compat: bool, tiny: Any, request_: Any, tmp_path: Path) -> None:
    digest = tiny.digest
    edit = fit(tiny, request_, tmp_path, init=init, compat=compat)
    facts = read_json(edit.folder / "loku.json")
    assert facts["init"] == init
    assert facts["initial_logit_change"] < 1e-4
    if init == "fila":
        assert facts["batch_size"] == 4, "squares of batch means depend on it, so it is stored"
        assert 0 <= facts["floored_share"] <= 1
    tiny.changed()
    assert tiny.digest == digest


def test_the_edit_holds_the_merged_change(tiny: Any, request_: Any, tmp_path: Path) -> None:
    """Neither residual nor adapter stays behind: the edit moves the target matrices by a change of rank at most 2r."""
    before = {name: value.detach().clone() for name, value in tiny.weights().items()}
    targets = linear_targets(tiny.model, "all-linear")
    edit = fit(tiny, request_, tmp_path)
    assert edit.kind == "weights"
    edit.apply(tiny)
    assert type(tiny.model).__name__ == "LlamaForCausalLM"
    for name, value in tiny.weights().items():
        delta = value.detach().double() - before[name].double()
        if name.removesuffix(".weight") in targets:
            singular = torch.linalg.svdvals(delta)
            assert float(singular[0]) > 1e-4
            assert float(singular[4]) < 1e-5 * max(1.0, float(singular[0])), "s BA - s B0 A0 has rank 2r = 4"
        else:
            assert not bool(delta.any()), f"{name} is no target"


def test_scope_layers_puts_adapters_there_only(tiny: Any, request_: Any, tmp_path: Path) -> None:
    edit = fit(tiny, request_, tmp_path, scope="layers", layers="0", init="svd")
    assert edit.facts.tensors == 7
    with pytest.raises(ConfigError, match="layers"):
        METHOD.configure({"layers": "0"})
    with pytest.raises(ConfigError, match="scope"):
        METHOD.configure({"scope": "all"})


def test_importance_of_batches_and_of_rows_differ(tiny: Any, request_: Any) -> None:
    names = ["model.layers.0.mlp.up_proj.weight"]

    def made(**values: Any) -> Any:
        return importance(tiny, request_, LoKUConfig(**values), names)

    batch, exact, single = made(), made(exact=True), made(importance_batch=1)
    assert not torch.allclose(batch[0][names[0]], exact[0][names[0]], rtol=1e-2)
    assert torch.allclose(single[0][names[0]], exact[0][names[0]], rtol=1e-3, atol=1e-10)
    assert [notes["batch_size"] for *_, notes in (batch, exact, single)] == [4, 1, 1]
    assert list(batch[0]) == names


def test_low_precision_warns_where_it_does_not_cancel(tiny: Any, request_: Any, tmp_path: Path) -> None:
    tiny.model.to(torch.bfloat16)
    tiny.changed()
    digest = tiny.digest
    with pytest.warns(UserWarning, match="moved a logit by"):
        edit = fit(tiny, request_, tmp_path, init="svd")
    assert tiny.digest == digest
    edit.apply(tiny)
    edit.remove(tiny)
    assert tiny.digest == digest


def test_defaults_that_differ_from_the_paper_say_so() -> None:
    config = METHOD.configure({"lora_rank": 4})
    assert config.lora_alpha == 8.0
    assert METHOD.configure().lora_alpha == 16.0
    assert config.weight_decay == 0.0
    assert "code: 0.01" in str(LoKUConfig.model_fields["weight_decay"].description)
    assert METHOD.configure({"lora_rank": 4, "lora_alpha": 4}).lora_alpha == 4.0


def test_a_rank_beyond_the_smallest_matrix(tiny: Any, request_: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora_rank=33.*at most 32"):
        fit(tiny, request_, tmp_path, lora_rank=33)


def test_it_lowers_the_forget_set_more_than_the_rest(tiny: Any, request_: Any, tmp_path: Path) -> None:
    from efface.train.reference import mean_probability

    rows = {name: tiny.encode_rows(getattr(request_, name)) for name in ("forget", "retain")}
    before = {name: mean_probability(tiny, part) for name, part in rows.items()}
    edit = fit(tiny, request_, tmp_path, lora_rank=4, epochs=15)
    edit.apply(tiny)
    after = {name: mean_probability(tiny, part) for name, part in rows.items()}
    left = {name: after[name] / before[name] for name in rows}
    assert left["forget"] < 0.7
    assert left["retain"] > left["forget"], "how much more is the proof's matter: this model is a coarse one"


def test_a_stopped_run_goes_on_to_the_same_bits(
    tiny: Any, tiny_folder: Path, request_: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint holds the adapter alone: the residual base is made again before it is read."""
    from efface.train import engine

    values = {"epochs": 3, "checkpoint_seconds": 1e-9}
    whole = fit(tiny, request_, tmp_path / "a", **values)
    plain, calls = engine._Engine.compute_loss, {"n": 0}

    def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls["n"] += 1
        if calls["n"] == 4:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(engine._Engine, "compute_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        fit(efface.load(tiny_folder), request_, tmp_path / "b", **values)
    monkeypatch.setattr(engine._Engine, "compute_loss", plain)
    resumed = fit(efface.load(tiny_folder), request_, tmp_path / "b", **values)
    assert resumed.facts.edited_digest == whole.facts.edited_digest
