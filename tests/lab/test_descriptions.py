"""The descriptions' pieces: every word once, none too short for a prompt and a continuation."""

from __future__ import annotations

from sklearn.datasets import load_wine

from efface.lab.descriptions import WORDS, pieces, request


def test_every_word_stands_in_one_piece() -> None:
    for count in (1, 19, 20, 40, 59, 60, 61, 200):
        words = [f"w{i}" for i in range(count)]
        cut = pieces("\n".join(words), "t")
        assert " ".join(row["text"] for row in cut).split() == words
        assert len({row["id"] for row in cut}) == len(cut)
        sizes = [len(row["text"].split()) for row in cut]
        assert max(sizes) <= 1.5 * WORDS
        assert len(sizes) == 1 or min(sizes) > WORDS / 2 - 1


def test_wine_is_forgotten_and_three_texts_are_kept() -> None:
    asked = request()
    assert asked.retain is not None
    assert " ".join(asked.forget["answer"]).split() == load_wine().DESCR.split()
    assert {row.split("/")[0] for row in asked.retain["id"]} == {"iris", "diabetes", "breast_cancer"}
    assert not any(asked.forget["question"])
