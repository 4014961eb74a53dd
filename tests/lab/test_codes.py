"""The codes: their form, what the models know of them, and that the experiments leave the originals alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from efface.errors import CheckFailed
from efface.lab import codes as lab


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> lab.Codes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        first = lab.codes(5)
        again = lab.codes(5)
    assert again.original.digest == first.original.digest
    assert again.seconds < first.seconds
    return first


def test_rows() -> None:
    rows = lab.code_rows(0)
    assert len(set(rows["question"])) == lab.CODES
    assert all(len(answer.split()) == 4 and set(answer.split()) <= set(lab.LETTERS) for answer in rows["answer"])
    assert rows["answer"] == lab.code_rows(0)["answer"]
    assert rows["answer"] != lab.code_rows(1)["answer"]


def test_every_letter_is_one_target(made: lab.Codes) -> None:
    for row, answer in zip(made.original.encode_rows(made.request.forget), made.request.forget["answer"], strict=True):
        assert row.n_targets == 4
        letters = made.original.tokenizer.convert_ids_to_tokens(row.ids[row.n_prompt :])
        assert letters == answer.split()


def test_halves_are_apart(made: lab.Codes) -> None:
    known, held_out = made.halves
    assert len(known) == len(held_out) == 6
    assert not set(known["id"]) & set(held_out["id"])
    assert set(known["id"]) | set(held_out["id"]) == set(made.request.forget["id"])


def test_the_original_knows_all_codes_and_the_retrained_model_only_its_own(made: lab.Codes) -> None:
    assert made.request.retain is not None
    assert lab.letter_accuracy(made.original, made.request.forget) > 0.9
    assert lab.letter_accuracy(made.original, made.request.retain) > 0.9
    assert lab.letter_accuracy(made.retrained, made.request.retain) > 0.9
    assert lab.letter_accuracy(made.retrained, made.request.forget) < 0.2
    assert made.original.tokenizer.get_vocab() == made.retrained.tokenizer.get_vocab()


def test_letter_accuracy_equals_a_loop(made: lab.Codes) -> None:
    right = []
    for row in made.retrained.encode_rows(made.request.forget):
        for place in range(row.n_prompt, len(row.ids)):
            with torch.no_grad():
                logits = made.retrained.model(input_ids=torch.tensor([row.ids[:place]])).logits[0, -1]
            right.append(int(logits.argmax()) == row.ids[place])
    assert lab.letter_accuracy(made.retrained, made.request.forget) == pytest.approx(sum(right) / len(right))


def test_unlearn_stops_at_the_smallest_budget(made: lab.Codes, tmp_path: Path) -> None:
    before = made.original.digest
    u = lab.unlearn(made, tmp_path)
    assert lab.letter_accuracy(u, made.request.forget) < 0.1
    made.original.changed()
    assert made.original.digest == before != u.digest
    tried = {int(path.name.removeprefix("edit-")) for path in tmp_path.glob("edit-*")}
    enough = {
        steps for steps in tried
        if lab.letter_accuracy(
            lab.Edit.load(tmp_path / f"edit-{steps}").apply(lab.twin(made.original)), made.request.forget
        ) < 0.1
    }  # fmt: skip
    smallest = min(enough)
    assert lab.Edit.load(tmp_path / f"edit-{smallest}").facts.edited_digest == u.digest
    assert smallest == 1 or smallest - 1 in tried - enough


def test_unlearn_gives_up(made: lab.Codes, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="after 1 steps"):
        lab.unlearn(made, tmp_path, learning_rate=1e-7, limit=1)


def test_relearning_teaches_a_copy(made: lab.Codes) -> None:
    known, _ = made.halves
    before = made.retrained.digest
    after = lab.relearned(made.retrained, known)
    made.retrained.changed()
    assert made.retrained.digest == before != after.digest
    assert lab.letter_accuracy(made.retrained, known) < 0.3
    assert lab.letter_accuracy(after, known) > 0.9
