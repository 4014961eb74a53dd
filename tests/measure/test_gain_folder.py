"""Folders of a measurement: contents, selection, resumption to the same bits, comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from gain_samples import A, column, config, sides

from efface.errors import InputError, RunError, StorageError
from efface.measure import gain_scores
from efface.measure.gain_folder import compare, load_gain, measure_into
from efface.measure.gain_summary import GainSummary
from efface.measure.information_gain import measure
from efface.measure.sides import EmbeddedSide
from efface.run.files import read_json


def test_a_folder_holds_everything_and_is_read_back(tmp_path: Path) -> None:
    images, texts = sides()

    def gallery(folder: Path, result: Any) -> None:
        (folder / "gallery.html").write_text(result.summary.headline, encoding="utf-8")

    out = tmp_path / "run"
    result = measure_into(out, images, texts, scale=A, config=config(keep=0.25, fixed_z=False), finish=gallery)
    assert {path.name for path in out.iterdir()} == {
        "scores.parquet", "statistics.safetensors", "measure.json", "selected.parquet", "manifest.json", "gallery.html",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "parts are gone"
    scores = pq.read_table(out / "scores.parquet")
    assert len(scores) == 150
    assert scores.column("side").to_pylist() == ["images"] * 60 + ["texts"] * 90
    assert GainSummary.model_validate(read_json(out / "measure.json")) == result.summary
    back = load_gain(out)
    for name, table in result.tables.items():
        assert back.tables[name].equals(table)
    assert back.moments["texts"].digest == result.moments["texts"].digest


def test_selection_keeps_the_top_share_of_the_texts(tmp_path: Path) -> None:
    images, texts = sides()
    for share, kept in ((0.25, 23), (0.001, 1), (1.0, 90)):
        out = tmp_path / str(share)
        result = measure_into(out, images, texts, scale=A, config=config(keep=share))
        chosen = pq.read_table(out / "selected.parquet")
        kl = column(result.tables["texts"], "kl")
        best = np.argsort(-kl, kind="stable")[:kept]
        assert chosen.column("id").to_pylist() == [f"t{i}" for i in best]
        assert chosen.column("rank").to_pylist() == list(range(1, kept + 1))
        np.testing.assert_array_equal(column(chosen, "value"), kl[best])


def test_the_same_measurement_is_read_back_and_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, texts = sides()
    first = measure_into(tmp_path / "run", images, texts, scale=A)
    monkeypatch.setattr(gain_scores, "_part", lambda *_: pytest.fail("scored again"))
    again = measure_into(tmp_path / "run", images, texts, scale=A)
    assert again.summary == first.summary
    with pytest.raises(StorageError, match="not empty"):
        measure_into(tmp_path / "run", images, texts, scale=A + 1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match="not empty"):
        measure_into(tmp_path / "other", images, texts, scale=A)


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts = sides()
    settings = config(part_rows=16)
    measure_into(tmp_path / "whole", images, texts, scale=A, config=settings)
    scored: list[int] = []
    real = gain_scores._part

    def dying(job: Any, start: int, stop: int) -> Any:
        if len(scored) == 6:
            raise KeyboardInterrupt
        scored.append(start)
        return real(job, start, stop)

    monkeypatch.setattr(gain_scores, "_part", dying)
    with pytest.raises(KeyboardInterrupt):
        measure_into(tmp_path / "run", images, texts, scale=A, config=settings, work=tmp_path / "work")
    assert not (tmp_path / "run").exists()
    parts = sorted((tmp_path / "work").iterdir())
    assert len(parts) == 6
    damaged = bytearray(parts[2].read_bytes())
    damaged[-3] ^= 1
    parts[2].write_bytes(damaged)  # a damaged part is scored again
    again: list[int] = []
    monkeypatch.setattr(gain_scores, "_part", lambda *args: again.append(args[1]) or real(*args))
    measure_into(tmp_path / "run", images, texts, scale=A, config=settings, work=tmp_path / "work")
    assert len(again) == 10 - 6 + 1
    for name in ("scores.parquet", "statistics.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("change", ["scale", "row", "sample", "settings"])
def test_parts_of_another_measurement_are_not_used(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, texts = sides()
    measure(images, texts, scale=A, work=tmp_path)
    scored: list[str] = []
    real = gain_scores._part
    monkeypatch.setattr(gain_scores, "_part", lambda *args: scored.append(args[0].name) or real(*args))
    u, v = images.values.copy(), texts.values.copy()
    if change == "row":
        u[3] = -u[3]
    if change == "sample":
        v[3] = -v[3]
    settings = config(centre="zero") if change == "settings" else config()
    measure(
        EmbeddedSide(u, images.ids, images.keys), EmbeddedSide(v, texts.ids, texts=texts.texts), config=settings,
        scale=A + 1 if change == "scale" else A, work=tmp_path,
    )  # fmt: skip
    assert scored == ["images", "texts"]
    scored.clear()
    measure(
        EmbeddedSide(u, images.ids, images.keys), EmbeddedSide(v, texts.ids, texts=texts.texts),
        config=settings.model_copy(update={"top": 3}), scale=A + 1 if change == "scale" else A, work=tmp_path,
    )  # fmt: skip
    assert scored == [], "what only the summary shows does not change a score"


def test_comparing_two_models_on_the_same_items(tmp_path: Path) -> None:
    images, texts = sides()
    noise = np.random.default_rng(7).standard_normal((60, 8)) * 0.05
    moved = EmbeddedSide((images.values + noise).astype(np.float32), images.ids, images.keys)
    other = EmbeddedSide(texts.values[:, ::-1].copy(), texts.ids, texts=texts.texts)
    rotated = EmbeddedSide(moved.values[:, ::-1].copy(), images.ids, images.keys)
    measure_into(tmp_path / "a", images, texts, scale=A)
    measure_into(tmp_path / "b", rotated, other, scale=A)
    found = {(row.side, row.mode): row for row in compare(tmp_path / "a", tmp_path / "b")}
    a, b = (column(load_gain(tmp_path / name).tables["images"], "kl") for name in "ab")
    assert found["images", "kl"].r2 == pytest.approx(np.corrcoef(a, b)[0, 1] ** 2)
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    assert found["images", "kl"].spearman == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found["images", "kl"].mean_change == pytest.approx((b - a).mean())
    assert (found["texts", "kl"].spearman or 0) > 0.9


def test_trap_different_samples_compared(tmp_path: Path) -> None:
    images, texts = sides()
    measure_into(tmp_path / "a", images, texts, scale=A)
    texts_b = EmbeddedSide(texts.values, texts.ids, texts=["another", *list(texts.texts or [])[1:]])
    measure_into(tmp_path / "b", images, texts_b, scale=A)
    with pytest.raises(InputError, match="images measured over different samples"):
        compare(tmp_path / "a", tmp_path / "b")
    renamed = EmbeddedSide(images.values, [f"x{k}" for k in range(60)], images.keys)
    measure_into(tmp_path / "c", renamed, texts, scale=A)
    with pytest.raises(InputError, match="different images in"):
        compare(tmp_path / "a", tmp_path / "c")


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not a finished run"):
        load_gain(tmp_path)
    images, texts = sides()
    measure_into(tmp_path / "a", images, texts, scale=A)
    (tmp_path / "a" / "scores.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(StorageError, match=r"scores\.parquet cannot be read"):
        load_gain(tmp_path / "a")
    from efface.run.manifest import write_manifest

    (tmp_path / "b").mkdir()
    write_manifest(tmp_path / "b", kind="run")
    with pytest.raises(RunError, match="kind 'run'"):
        load_gain(tmp_path / "b")
