"""The measure from embeddings to tables: every mode against loops, samples, pairs, statistics from files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from gain_samples import A, by_loops, column, config, rows, sides, unit64

from efface.catalog import find
from efface.errors import InputError
from efface.measure.gain_folder import load_gain, measure_into
from efface.measure.information_gain import measure
from efface.measure.sides import EmbeddedSide
from efface.numerics.moments import Moments, save_moments


@pytest.mark.parametrize("sizes", [{}, {"chunk_queries": 7, "chunk_sample": 11, "part_rows": 13}])
def test_both_sides_equal_loops(sizes: dict[str, int]) -> None:
    images, texts = sides()
    result = measure(images, texts, scale=A, config=config(**sizes))
    values = {"images": unit64(images.values), "texts": unit64(texts.values)}
    for name, other in (("images", "texts"), ("texts", "images")):
        table = result.tables[name]
        for i in (0, 13, 59):
            for mode, value in by_loops(values[name][i], values[name], values[other], A).items():
                assert column(table, mode)[i] == pytest.approx(value, rel=1e-9), (name, i, mode)
    assert result.tables["texts"].column("id").to_pylist() == list(texts.ids or [])
    assert result.summary.sides[0].log_n == pytest.approx(math.log(90))
    assert result.tables["images"].schema.field("saturated").type == pa.bool_()


def test_bits_are_nats_over_ln_2_in_the_tables_alone() -> None:
    images, texts = sides()
    nats, bits = (measure(images, texts, scale=A, config=config(unit=unit)) for unit in ("nats", "bits"))
    for mode in ("kl", "klr", "cov_norm", "cov_norm_zero", "k2_half"):
        ratio = column(bits.tables["images"], mode) / column(nats.tables["images"], mode)
        np.testing.assert_allclose(ratio, 1 / math.log(2))
    for mode in ("ess", "skewness", "centered_norm"):
        np.testing.assert_array_equal(column(bits.tables["images"], mode), column(nats.tables["images"], mode))
    assert bits.tables["images"].schema.metadata == {b"unit": b"bits"}
    assert (bits.summary.unit, bits.summary.sides) == ("bits", nats.summary.sides)


def test_centre_zero_and_raw_norms() -> None:
    images, texts = sides()
    zero = measure(images, texts, scale=A, config=config(centre="zero"))
    np.testing.assert_array_equal(
        column(zero.tables["images"], "cov_norm"), column(zero.tables["images"], "cov_norm_zero")
    )
    np.testing.assert_allclose(column(zero.tables["images"], "centered_norm"), A * A)
    long = EmbeddedSide(images.values * np.linspace(1, 3, 60, dtype=np.float32)[:, None])
    settings = config(normalize=False, modes=["raw_norm", "cov_norm"], headline="raw_norm")
    raw = measure(long, texts, scale=A, config=settings)
    np.testing.assert_allclose(column(raw.tables["images"], "raw_norm"), (A * np.linspace(1, 3, 60)) ** 2, rtol=1e-5)
    assert "kl" not in raw.tables["images"].column_names


def test_fixed_z_stands_beside_the_self_normalised_gain() -> None:
    images, texts = sides()
    found = measure(images, texts, scale=A, bias=-9.0, config=config(fixed_z=True, training_batch=128))
    plain = measure(images, texts, scale=A)
    table = found.tables["images"]
    np.testing.assert_array_equal(column(table, "kl"), column(plain.tables["images"], "kl"))
    total = column(table, "kl_fixed_z") + column(table, "klr_fixed_z")
    np.testing.assert_allclose(total, column(table, "kl") + column(table, "klr"), rtol=1e-9)  # log Z cancels in the sum
    u, v = unit64(images.values), unit64(texts.values)
    s = A * u[5] @ v.T
    w = np.exp(s - s.max())
    expected = float(w @ s / w.sum()) - 9.0 + math.log(127)
    assert column(table, "kl_fixed_z")[5] == pytest.approx(expected, rel=1e-9)


def test_exclude_self_pairs_by_id_and_by_row() -> None:
    u, v = rows(40, 8, 0), rows(40, 8, 1)
    order = np.random.default_rng(0).permutation(40)
    by_row = measure(u, v, scale=A, config=config(exclude_self=True))
    named = measure(
        EmbeddedSide(u, ids=[str(i) for i in range(40)]), EmbeddedSide(v[order], ids=[str(i) for i in order]), scale=A,
        config=config(exclude_self=True),
    )  # fmt: skip
    np.testing.assert_allclose(column(named.tables["images"], "kl"), column(by_row.tables["images"], "kl"), rtol=1e-9)
    alone = by_loops(unit64(u)[3], unit64(u), np.delete(unit64(v), 3, axis=0), A)
    assert column(by_row.tables["images"], "kl")[3] == pytest.approx(alone["kl"], rel=1e-9)
    assert by_row.summary.sides[0].log_n == pytest.approx(math.log(39))


def test_a_drawn_sample_is_that_sample() -> None:
    u, v = rows(60, 8, 0), rows(90, 8, 1)
    found = measure(u, v, scale=A, config=config(sample_size=30, seed=5, exclude_self=False))
    index = np.sort(np.random.default_rng(5).choice(90, 30, replace=False))
    own = np.sort(np.random.default_rng(5).choice(60, 30, replace=False))
    alone = by_loops(unit64(u)[7], unit64(u)[own], unit64(v)[index], A)
    for mode, value in alone.items():
        assert column(found.tables["images"], mode)[7] == pytest.approx(value, rel=1e-9), mode
    side = found.summary.sides[0]
    assert (side.sample_size, side.n) == (30, 60)
    assert side.sample_digest == Moments.of(unit64(v)[index]).digest


def test_exclude_self_within_a_drawn_sample() -> None:
    u, v = rows(40, 8, 0), rows(40, 8, 1)
    found = measure(u, v, scale=A, config=config(sample_size=20, seed=1, exclude_self=True))
    index = np.sort(np.random.default_rng(1).choice(40, 20, replace=False))
    own = np.sort(np.random.default_rng(1).choice(40, 20, replace=False))
    inside, outside = int(index[4]), int(np.setdiff1d(np.arange(40), index)[0])
    for i, sample in ((inside, np.delete(index, 4)), (outside, index)):
        alone = by_loops(unit64(u)[i], unit64(u)[own], unit64(v)[sample], A)
        assert column(found.tables["images"], "kl")[i] == pytest.approx(alone["kl"], rel=1e-9)


def test_paper_scale_adds_the_official_numbers() -> None:
    images, texts = sides()
    found = measure(images, texts, scale=A, config=config(paper_scale=True)).tables["images"]
    np.testing.assert_allclose(column(found, "cov_norm_paper"), 2 * 90 * column(found, "cov_norm"), rtol=1e-12)


def test_float16_embeddings_are_cast_before_the_product() -> None:
    images, texts = (side.values.astype(np.float16) for side in sides())
    half = measure(images, texts, scale=100.0).tables["images"]
    double = measure(images.astype(np.float64), texts.astype(np.float64), scale=100.0).tables["images"]
    np.testing.assert_array_equal(column(half, "kl"), column(double, "kl"))
    tensors = measure(torch.from_numpy(images), torch.from_numpy(texts), scale=100.0).tables["images"]
    np.testing.assert_array_equal(column(half, "kl"), column(tensors, "kl"))


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_statistics_of_shards_give_the_norms_of_the_whole(shards: int, tmp_path: Path) -> None:
    images, texts = sides()
    whole = measure(images, texts, scale=A)
    paths = []
    for i, (u, v) in enumerate(
        zip(np.array_split(unit64(images.values), shards), np.array_split(unit64(texts.values), shards), strict=True)
    ):
        moments = {"images": Moments.of(u), "texts": Moments.of(v)}
        paths.append(save_moments(tmp_path / f"{i}.safetensors", moments))
    found = measure(images, None, scale=A, statistics=paths[::-1])
    table = found.tables["images"]
    for mode in ("cov_norm", "cov_norm_zero", "centered_norm", "k2_half"):
        np.testing.assert_allclose(column(table, mode), column(whole.tables["images"], mode), rtol=1e-11)
    assert "kl" not in table.column_names
    assert found.summary.headline == "cov_norm"
    assert any(line.startswith("kl, klr not computed: statistics from files") for line in found.summary.warnings)
    assert found.summary.sides[0].highest[0].kl is None
    assert found.summary.sides[0].sample_digest == Moments.of(unit64(texts.values)).digest
    with pytest.raises(InputError, match="exclude_self with statistics from files"):
        measure(images, None, scale=A, statistics=paths, config=config(exclude_self=True))
    with pytest.raises(InputError, match="images of 5 dimensions and statistics of"):
        measure(rows(10, 5, 0), None, scale=A, statistics=paths)


def test_the_statistics_of_a_run_serve_another(tmp_path: Path) -> None:
    images, texts = sides()
    measure_into(tmp_path / "run", images, texts, scale=A)
    found = measure(images, None, scale=A, statistics=[tmp_path / "run" / "statistics.safetensors"])
    stored = load_gain(tmp_path / "run").tables["images"]
    np.testing.assert_array_equal(column(found.tables["images"], "cov_norm"), column(stored, "cov_norm"))


def test_the_card_is_found() -> None:
    assert find("information-gain", "measure").card.mechanism == "measure"
