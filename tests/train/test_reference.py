"""The reference cache: equal to the uncached path, keyed by the model, and made anew where it is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from efface.subjects.answers import answer_logits
from efface.subjects.prompts import collate
from efface.train.reference import reference_logp, reference_top_k


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone."""
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    return tmp_path / "reference"


def test_sums_equal_one_row_at_a_time(tiny: Any, request_: Any, own_cache: Path) -> None:
    rows = tiny.encode_rows(request_.forget)
    found = reference_logp(tiny, rows)
    with torch.no_grad():
        plain = torch.cat([answer_logits(tiny.model, collate([row], tiny.pad_id)).logp_sum for row in rows])
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    assert len(list(own_cache.iterdir())) == 1
    torch.testing.assert_close(reference_logp(tiny, rows), found, atol=0, rtol=0)


def test_top_k_is_a_piece_of_the_whole_distribution(tiny: Any, request_: Any, own_cache: Path) -> None:
    rows = tiny.encode_rows(request_.retain)
    vocabulary = tiny.model.get_input_embeddings().weight.shape[0]
    ids, logp = reference_top_k(tiny, rows, vocabulary)
    some_ids, some = reference_top_k(tiny, rows, 3)
    for row, every, few, few_ids in zip(rows, logp, some, some_ids, strict=True):
        assert every.shape == (row.n_targets, vocabulary)
        torch.testing.assert_close(every.exp().sum(-1), torch.ones(row.n_targets))
        torch.testing.assert_close(every[:, :3], few)
        assert few_ids.shape == (row.n_targets, 3)
    assert ids[0].sort(-1).values.tolist()[0] == list(range(vocabulary))


def test_another_model_has_another_entry(tiny: Any, request_: Any, own_cache: Path) -> None:
    rows = tiny.encode_rows(request_.forget)
    first = reference_logp(tiny, rows)
    with torch.no_grad():
        next(iter(tiny.weights().values())).mul_(1.5)
    tiny.changed()
    assert not torch.equal(reference_logp(tiny, rows), first)
    assert len(list(own_cache.iterdir())) == 2


def test_a_damaged_entry_is_made_anew(tiny: Any, request_: Any, own_cache: Path) -> None:
    rows = tiny.encode_rows(request_.forget)
    found = reference_logp(tiny, rows)
    path = next(own_cache.iterdir())
    path.write_bytes(path.read_bytes()[:20])
    torch.testing.assert_close(reference_logp(tiny, rows), found, atol=0, rtol=0)
