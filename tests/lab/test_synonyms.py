"""Thirty entries of three phrases each, no two of an entry alike."""

from __future__ import annotations

from efface.lab.synonyms import SYNONYMS, speaker, triples


def test_triples() -> None:
    found = triples()
    assert len(found) == len(SYNONYMS) == 30
    assert all(len(set(row)) == 3 for row in found)
    words = [text for pair in SYNONYMS for text in pair]
    assert len(set(words)) == 60
    assert all(not set(a.split()) & set(b.split()) for a, b in SYNONYMS), "a shared word would make it easy"


def test_the_model_says_the_phrase() -> None:
    model = speaker(0)
    prompts = [list(model.tokenizer(f"entry {i} :")["input_ids"]) for i in range(30)]
    said = [model.decode(ids) for ids in model.generate(prompts, max_new_tokens=6)]
    assert sum(text == row[0] for text, row in zip(said, triples(), strict=True)) >= 28
