"""Weight masks: exact density, set operations, names, storing."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from efface.errors import ConfigError, InputError, RunError, StorageError
from efface.train.weight_mask import MaskFacts, WeightMask, matching


def scores() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "model.layers.0.mlp.up_proj.weight": torch.rand(7, 5, generator=generator),
        "model.layers.10.mlp.up_proj.weight": 100 * torch.rand(3, 3, generator=generator),
        "model.layers.1.input_layernorm.weight": torch.zeros(11),
    }


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("density", [0.001, 0.05, 1 / 3, 0.5, 0.95, 0.999, 1.0])
def test_density_is_met_to_the_entry(density: float, per_layer: bool) -> None:
    mask = WeightMask.from_scores(scores(), density, per_layer=per_layer)
    assert mask.size == 55
    assert mask.selected == round(density * 55)
    assert abs(mask.density - density) <= 1 / 55
    assert mask.facts.density == density


def test_global_ranking_lets_one_tensor_crowd_out_and_the_layerwise_does_not() -> None:
    together = WeightMask.from_scores(scores(), 9 / 55)
    assert together.counts() == {"input_layernorm": (0, 11), "up_proj": (9, 44)}
    assert bool(together.masks["model.layers.10.mlp.up_proj.weight"].all())
    apart = WeightMask.from_scores(scores(), 9 / 55, per_layer=True)
    assert [int(mask.sum()) for mask in apart.masks.values()] == [6, 1, 2]
    assert apart.masks["model.layers.1.input_layernorm.weight"].tolist() == [True, True, *[False] * 9], "ties by index"


def test_lowest_scores() -> None:
    top, low = (WeightMask.from_scores(scores(), share, largest=side) for share, side in ((0.6, True), (0.4, False)))
    assert top.intersection(low).selected <= 11, "only ties (the zeros) can be in both"
    assert bool(low.masks["model.layers.1.input_layernorm.weight"].all())


def test_several_densities_are_nested_and_equal_one_by_one() -> None:
    densities = [0.1, 0.2, 0.4, 0.6, 0.8, 0.85, 0.9, 0.95, 0.99, 1.0]
    for per_layer in (False, True):
        made = WeightMask.several(scores(), densities, per_layer=per_layer)
        for density, mask in zip(densities, made, strict=True):
            alone = WeightMask.from_scores(scores(), density, per_layer=per_layer)
            assert all(torch.equal(mask.masks[name], alone.masks[name]) for name in mask.masks)
        for small, large in pairwise(made):
            assert small.intersection(large).selected == small.selected


def test_union_intersection_jaccard() -> None:
    a = WeightMask({"w": torch.tensor([True, True, False, False]), "only_a": torch.tensor([True])})
    b = WeightMask({"w": torch.tensor([True, False, True, False])})
    assert a.union(b).selected == 4
    assert a.intersection(b).selected == 1
    assert a.jaccard(b) == b.jaccard(a) == 0.25
    assert a.jaccard(a) == 1.0
    empty = WeightMask({"w": torch.zeros(4, dtype=torch.bool)})
    assert empty.jaccard(empty) == 1.0
    with pytest.raises(InputError, match="shapes"):
        a.union(WeightMask({"w": torch.tensor([True])}))


def test_patterns_are_anchored() -> None:
    names = list(scores())
    assert matching(names, ["model.layers.1"]) == ["model.layers.1.input_layernorm.weight"], "not layer 10"
    assert matching(names, ["model.layers.*.mlp"]) == names[:2]
    assert matching(names, ["model.layers.1?"]) == [names[1]]
    for bad in ("mlp", "layers.1", "model.layers.2", "model.layers.1.input_layernorm.weight.more"):
        with pytest.raises(ConfigError, match="names no weight"):
            matching(names, [bad])


def test_from_names_and_tied_weights(tiny: Any) -> None:
    mask = WeightMask.from_names(tiny.model, ["model.layers.1.mlp"])
    assert set(mask.masks) == {f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
    assert mask.density == 1.0
    tied = WeightMask({"lm_head.weight": torch.ones_like(tiny.model.lm_head.weight, dtype=torch.bool)})
    with pytest.raises(InputError, match=r"'lm_head.weight' is tied to 'model.embed_tokens.weight'"):
        tied.parameters(tiny.model)
    with pytest.raises(InputError, match="shape"):
        WeightMask({"model.norm.weight": torch.ones(3, dtype=torch.bool)}).parameters(tiny.model)


def test_one_bit_a_weight_on_the_disk(tmp_path: Path) -> None:
    facts = MaskFacts(selector="wagle", model="sha256:x", data={"forget": "sha256:y"}, gamma=1e-6, retain_share=0.9)
    big = {"w": torch.rand(1000, 999, generator=torch.Generator().manual_seed(1)), "odd": torch.rand(13)}
    mask = WeightMask.from_scores(big, 0.3, facts=facts)
    path = mask.save(tmp_path / "mask.safetensors")
    assert path.stat().st_size < 1000 * 999 / 8 + 2000
    again = WeightMask.load(path)
    assert again.facts == mask.facts
    assert again.facts.density == 0.3
    assert all(torch.equal(mask.masks[name], again.masks[name]) for name in big)


def test_a_mask_of_another_model_or_a_broken_file(tiny: Any, tmp_path: Path) -> None:
    masks = {"model.norm.weight": torch.ones(32, dtype=torch.bool)}
    mask = WeightMask(masks, MaskFacts(model="sha256:other"))
    with pytest.raises(RunError, match="made on the model sha256:other"):
        mask.parameters(tiny.model, tiny.digest)
    path = mask.save(tmp_path / "mask.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match="not a whole weight mask"):
        WeightMask.load(path)
    with pytest.raises(RunError, match="no mask at"):
        WeightMask.load(tmp_path / "none.safetensors")
    from safetensors.torch import save_file

    save_file({"w": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(RunError, match="is not a weight mask"):
        WeightMask.load(tmp_path / "other.safetensors")


def test_bad_densities_and_nothing_to_rank() -> None:
    for density in (0.0, -0.1, 1.1):
        with pytest.raises(ConfigError, match="density"):
            WeightMask.from_scores(scores(), density)
    with pytest.raises(InputError, match="no weights to rank"):
        WeightMask.from_scores({}, 0.5)
