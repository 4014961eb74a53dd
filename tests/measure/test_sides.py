"""The traps of information gain, each an error or a warning, by name."""

from __future__ import annotations

import numpy as np
import pytest
from gain_samples import A, column, config, rows, sides

from efface.errors import ConfigError, InputError
from efface.measure.information_gain import measure
from efface.measure.sides import EmbeddedSide


def test_trap_unnormalised_rows_with_normalize_false() -> None:
    images, texts = sides()
    bad = images.values.copy()
    bad[17] *= 2
    with pytest.raises(InputError, match="row 17 of images has length 2 with normalize=false; expected unit rows"):
        measure(bad, texts, scale=A, config=config(normalize=False))
    normalised = measure(bad, texts, scale=A)
    np.testing.assert_allclose(
        column(normalised.tables["images"], "kl"),
        column(measure(images, texts, scale=A).tables["images"], "kl"),
        rtol=1e-6,
    )
    assert any("1 of 60 rows were not of unit length" in line for line in normalised.summary.warnings)


def test_trap_zero_rows() -> None:
    images, texts = sides()
    bad = texts.values.copy()
    bad[3] = 0
    with pytest.raises(InputError, match="row 3 of texts is all zeros"):
        measure(images, bad, scale=A)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_trap_rows_that_are_not_finite(value: float) -> None:
    images, texts = sides()
    bad = images.values.copy()
    bad[41, 2] = value
    with pytest.raises(InputError, match="row 41 of images is not finite"):
        measure(bad, texts, scale=A)


def test_trap_swapped_modalities() -> None:
    values = rows(20, 8, 0), rows(20, 8, 1)
    with pytest.raises(InputError, match="embeddings of text items given as images"):
        measure(EmbeddedSide(values[0], modality="text"), values[1], scale=A)
    with pytest.raises(InputError, match="embeddings of image items given as texts"):
        measure(values[0], EmbeddedSide(values[1], modality="image"), scale=A)
    with pytest.raises(InputError, match=r"'out/coco_captions\.npy' given as images"):
        measure(EmbeddedSide(values[0], source="out/coco_captions.npy"), values[1], scale=A)
    with pytest.raises(InputError, match=r"'img\.npy' given as texts"):
        measure(values[0], EmbeddedSide(values[1], source="img.npy"), scale=A)
    for fine in ("text/images.npy", "image-text-pairs.npy", "textures.npy", "a.npy"):
        measure(EmbeddedSide(values[0], source=fine), values[1], scale=A)


def test_trap_a_sample_of_the_same_side() -> None:
    values = rows(20, 8, 0)
    with pytest.raises(InputError, match="the same rows as images and as texts"):
        measure(values, values, scale=A)
    with pytest.raises(InputError, match="the same embeddings as images and as texts"):
        measure(values, values.copy(), scale=A)


def test_trap_a_scale_given_as_log() -> None:
    images, texts = sides()
    with pytest.raises(InputError, match=r"a scale of 4\.6052, the logarithm of 100.*give 100"):
        measure(images, texts, scale=4.6052)
    with pytest.raises(InputError, match="CLIP and SigLIP store the logarithm"):
        measure(images, texts, scale=0.3)
    with pytest.raises(InputError, match="as if it had been taken twice"):
        measure(images, texts, scale=1e6)


def test_trap_fewer_than_two_rows() -> None:
    with pytest.raises(InputError, match="1 texts; expected two or more"):
        measure(rows(20, 8, 0), rows(1, 8, 1), scale=A)


def test_trap_dimensions_that_differ() -> None:
    with pytest.raises(InputError, match="images of 8 dimensions and texts of 7"):
        measure(rows(20, 8, 0), rows(20, 7, 1), scale=A)
    with pytest.raises(InputError, match=r"images of shape \[20\]"):
        measure(rows(20, 8, 0)[:, 0], rows(20, 7, 1), scale=A)


def test_trap_fewer_rows_than_dimensions() -> None:
    found = measure(rows(20, 30, 0), rows(40, 30, 1), scale=A)
    assert [line for line in found.summary.warnings if "rank-deficient" in line] == [
        "images: the sample has 20 rows and 30 dimensions; its covariance is rank-deficient, and the norms see only the "
        "directions that the sample spans"
    ]


def test_trap_many_duplicate_captions() -> None:
    images, texts = sides()
    many = EmbeddedSide(texts.values, texts=["a  picture " if i < 30 else f"caption {i}" for i in range(90)])
    log = measure(images, many, scale=A).summary.warnings
    assert any("texts: 32% of the sample repeat another item" in line for line in log)
    repeated = np.concatenate([texts.values[:45], texts.values[:45]])
    assert any("texts: 50% of the sample" in line for line in measure(images, repeated, scale=A).summary.warnings)
    assert not any("repeat" in line for line in measure(images, texts, scale=A).summary.warnings)


def test_trap_out_of_samples() -> None:
    log = measure(rows(300, 4, 0), rows(300, 4, 1), scale=100.0).summary.warnings
    assert any("are saturated" in line and "log N = 5.70" in line for line in log)


def test_trap_fixed_z_without_training_batch_or_bias() -> None:
    images, texts = sides()
    with pytest.raises(ConfigError, match="fixed_z needs training_batch"):
        config(fixed_z=True)
    with pytest.raises(InputError, match="fixed_z without a bias"):
        measure(images, texts, scale=A, config=config(fixed_z=True, training_batch=64))


def test_trap_exclude_self_without_one_to_one_pairs() -> None:
    images, texts = sides()
    with pytest.raises(InputError, match="exclude_self with 60 images against 90 texts; expected one-to-one pairs"):
        measure(images, texts, scale=A, config=config(exclude_self=True))
    other = EmbeddedSide(rows(60, 8, 1), ids=[f"t{k}" for k in range(60)])
    with pytest.raises(InputError, match="exclude_self with 60 images whose ids differ"):
        measure(images, other, scale=A, config=config(exclude_self=True))


def test_trap_settings_that_contradict() -> None:
    with pytest.raises(ConfigError, match="raw_norm is the constant"):
        config(modes=["kl", "raw_norm"])
    with pytest.raises(ConfigError, match="headline klr is not among the modes"):
        config(modes=["kl"], headline="klr")
    with pytest.raises(ConfigError, match="did you mean 'centre'"):
        config(center="zero")


def test_columns_that_do_not_fit_the_rows() -> None:
    images, texts = sides()
    with pytest.raises(InputError, match="2 ids for 60 images"):
        measure(EmbeddedSide(images.values, ids=["a", "b"]), texts, scale=A)
    with pytest.raises(InputError, match="59 repeated ids in images"):
        measure(EmbeddedSide(images.values, ids=["a"] * 60), texts, scale=A)
    with pytest.raises(InputError, match="no texts; expected both sides"):
        measure(images, None, scale=A)
    with pytest.raises(InputError, match="neither images nor texts"):
        measure(None, None, scale=A)
    with pytest.raises(InputError, match="images of type"):
        measure(np.array([["a"] * 8] * 3), texts, scale=A)
