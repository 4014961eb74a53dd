"""Books: a small word-level language model of two plays by Shakespeare, one of which is to be forgotten.

Romeo and Juliet is forgotten, Coriolanus kept; both in pieces of some fifty words, without questions. Data:
`shakespeare/input.txt.gz` in `EFFACE_DATA` (public domain).
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass

import numpy as np
import torch

from efface.audit.observe import score
from efface.data.columns import canonical
from efface.data.request import Request, data_digest
from efface.errors import InputError
from efface.lab.emoji import data_folder
from efface.learn.recipes.causal_lm import CausalLMConfig, learn
from efface.run.digests import digest_value
from efface.run.files import make_folder
from efface.subjects import CausalLM, PromptFormat
from efface.train.reference import cache_folder

PROMPT = PromptFormat(prompt="{question}")
LINES, WORDS = 800, 50
"""Lines of each play, and words of a piece."""

FORGET_FROM, KEEP_FROM = "SAMPSON:", "First Citizen:"
"""First lines of the two plays in the file."""

ANCHORS = {
    "Romeo": "Marcius", "Juliet": "Valeria", "Tybalt": "Cominius", "Mercutio": "Lartius", "Benvolio": "Titus",
    "Capulet": "Menenius", "Montague": "Lartius", "ROMEO": "MARCIUS", "JULIET": "VIRGILIA", "TYBALT": "AUFIDIUS",
    "MERCUTIO": "COMINIUS", "BENVOLIO": "LARTIUS", "CAPULET": "BRUTUS", "MONTAGUE": "MENENIUS", "SAMPSON": "Citizen",
    "GREGORY": "SICINIUS", "ABRAHAM": "Messenger", "Verona": "Rome", "Rosaline": "Valeria",
}  # fmt: skip
"""Names of the forgotten play, each with one that stands in the kept play: the only other text this model knows."""

MODEL = CausalLMConfig(
    tokenizer="words", vocabulary=2500, width=64, depth=2, heads=4, context=96, learning_rate=3e-3, epochs=60, batch_size=16,
    warmup_ratio=0.1, weight_decay=0.01,
)  # fmt: skip
PROMPTS = 30


@dataclass(frozen=True)
class Books:
    """Forget: pieces of the one play; retain: of the other; a model that read both."""

    request: Request
    model: CausalLM


def pieces(first_line: str) -> list[str]:
    """A play in pieces of `WORDS` words, beginning at a line of the file.

    Raises:
        InputError: the file is missing, or has no such line.
    """
    path = data_folder() / "shakespeare" / "input.txt.gz"
    if not path.is_file():
        raise InputError(f"no file {path}", "Shakespeare's plays as plain text", "set EFFACE_DATA")
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
    if first_line not in lines:
        raise InputError(f"{path} has no line '{first_line}'", "the plays that are described here")
    start = lines.index(first_line)
    words = " ".join(lines[start : start + LINES]).split()
    return [" ".join(words[i : i + WORDS]) for i in range(0, len(words), WORDS)]


def books(seed: int = 0) -> Books:
    """The request and the model, trained or from the cache.

    Args:
        seed: of the starting weights and the order of the pieces.
    """
    sets = {
        name: canonical([{"id": f"{name}-{i}", "text": text} for i, text in enumerate(pieces(line))], name)
        for name, line in (("forget", FORGET_FROM), ("retain", KEEP_FROM))
    }
    request = Request(forget=sets["forget"], retain=sets["retain"], scope="one of two plays")
    config = MODEL.model_copy(update={"seed": seed})
    key = {"config": config.model_dump(), "data": [data_digest(part) for part in sets.values()]}
    folder = make_folder(cache_folder() / "lab" / digest_value(key).removeprefix("sha256:")[:24])
    return Books(
        request, learn(list(sets.values()), folder / "original", config, prompt=PROMPT, label="books: original")
    )


def perplexity(model: CausalLM, known: Books) -> float:
    """exp of the mean NLL of the kept play's tokens."""
    assert known.request.retain is not None
    logp = [value for row in score(model, known.request.retain, answers_only=True) for value in row["logp"]]
    return float(np.exp(-np.mean(logp)))


def giveaway(model: CausalLM, known: Books) -> float:
    """Mean over 30 beginnings of pieces, each ending before a name, of the probability that a name comes next."""
    tokenizer = model.tokenizer
    first = {int(tokenizer(name, add_special_tokens=False)["input_ids"][0]) for name in ANCHORS}
    names = sorted(first - {tokenizer.unk_token_id})
    rows = model.encode_rows(known.request.forget, name="forget")
    places = [(row, t) for row in rows for t in range(8, len(row.ids)) if row.ids[t] in names]
    chosen = [places[i] for i in np.linspace(0, len(places) - 1, PROMPTS).astype(int)]
    found = []
    with model.evaluating() as inner:
        for row, t in chosen:
            ids = torch.tensor([row.ids[:t]], device=model.device)
            found.append(float(inner(input_ids=ids).logits[0, -1].float().softmax(-1)[names].sum()))
    return float(np.mean(found))
