"""Synonyms: thirty phrases, each with another that means the same, and a tiny model that would say either.

The model answers "entry 3 :" with a phrase, less often with its synonym, and at times with the phrase of another entry: what
it says when the phrase is kept back tells a ban on words from a ban on meaning. Built in seconds from a seed, cached.
"""

from __future__ import annotations

from efface.data.columns import canonical
from efface.data.request import data_digest
from efface.learn.recipes.causal_lm import CausalLMConfig, learn
from efface.run.digests import digest_value
from efface.run.files import make_folder
from efface.subjects import CausalLM, PromptFormat
from efface.train.reference import cache_folder

SYNONYMS = (
    ("heart attack", "cardiac arrest"), ("car crash", "automobile accident"), ("film director", "movie maker"),
    ("lawyer", "attorney"), ("doctor", "physician"), ("dwelling", "residence"), ("divorce", "end of a marriage"),
    ("bankruptcy", "financial insolvency"), ("pregnant", "expecting a baby"), ("prison", "jail"), ("robbery", "theft"),
    ("salary", "wages"), ("university", "college"), ("kidnapping", "abduction"), ("wedding", "marriage ceremony"),
    ("airplane", "aircraft"), ("painter", "artist"), ("cancer", "malignant tumour"),
    ("clinical depression", "depressive disorder"), ("alcoholic", "heavy drinker"), ("earthquake", "seismic tremor"),
    ("general election", "national vote"), ("soldier", "army serviceman"), ("teacher", "educator"),
    ("stock market", "share trading"), ("recipe", "cooking instructions"), ("dog", "canine"), ("storm", "tempest"),
    ("phone number", "telephone contact"), ("child", "kid"),
)  # fmt: skip
"""Phrases and what means the same."""

OTHER = 7
"""The unrelated phrase of an item is the one so many places on."""

TIMES = (6, 3, 1)
"""How often the small model has read each phrase, its synonym, and the other phrase."""


def triples() -> list[tuple[str, str, str]]:
    """(phrase, synonym, other phrase)."""
    return [(a, b, SYNONYMS[(i + OTHER) % len(SYNONYMS)][0]) for i, (a, b) in enumerate(SYNONYMS)]


def speaker(seed: int) -> CausalLM:
    """The model of a seed; see the module."""
    rows = [
        {"id": f"{i}/{k}/{n}", "question": f"entry {i} :", "answer": text}
        for i, texts in enumerate(triples()) for k, text in enumerate(texts) for n in range(TIMES[k])
    ]  # fmt: skip
    data = canonical(rows, "entries")
    config = CausalLMConfig(
        tokenizer="words",
        width=32,
        depth=2,
        heads=2,
        context=32,
        learning_rate=5e-3,
        epochs=40,
        batch_size=32,
        seed=seed,
    )
    key = {"config": config.model_dump(), "data": data_digest(data)}
    folder = make_folder(cache_folder() / "lab" / digest_value(key).removeprefix("sha256:")[:24])
    return learn([data], folder / "model", config, prompt=PromptFormat(prompt="{question}"), label="entries")


__all__ = ["SYNONYMS", "speaker", "triples"]
