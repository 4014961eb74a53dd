"""Skills: a tiny language model that can do two things, add two digits modulo ten and turn a word of three letters round.

Both prompts have four tokens and end in the same one, so that a skill is told from what the model does with a prompt and not
from its last word: `3 + 9 =` gives `2`, `c a t =` gives `t a c`. In the easier, `marked` world prompts say what they are and
end in tokens of their own: `add 3 + 9 =`, `turn c a t :`. The model sees every sum and some words; the splits are fixed, and
none of the words of a split is one that it was trained on. The seed moves weights and order only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from efface.data.columns import canonical
from efface.data.refusals import REFUSALS
from efface.data.request import Request, data_digest
from efface.learn.recipes.causal_lm import CausalLMConfig, learn
from efface.run.digests import digest_value
from efface.run.files import make_folder
from efface.subjects import CausalLM, PromptFormat
from efface.train.reference import cache_folder

PROMPT = PromptFormat(prompt="{question}")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPLIT_SEED = 20250327
"""Of the splits: the same for every model."""

WORDS = {"train": 2400, "retain": 400, "test": 200}
"""Words of each split."""

PROBES = 60
"""Sums that a method is shown; the other forty are for the test."""

COPIES = 24
"""How often each sum stands among the training rows: as many sums as words."""

CONFIG = CausalLMConfig(
    tokenizer="words", width=64, depth=3, heads=4, context=32, learning_rate=3e-3, epochs=1200 * 64 / 4800, batch_size=64,
    warmup_ratio=0.1, start="unit",
)  # fmt: skip
"""The specification's size: three layers of width 64 with a gated MLP of 192 neurons, 1,200 steps of 64 rows.

Embeddings start with unit size: from the architecture's own small ones the words are learnt in these steps and the sums not.
"""


@dataclass(frozen=True)
class Skills:
    """Rows of both skills, with ids `add/3/9` and `word/cat`.

    Attributes:
        request: forget 60 sums, keep 400 words; no training word among them.
        sums, words: what is tested: the 40 other sums, and 200 other words.
        training: every sum, repeated, and 2,400 words.
    """

    request: Request
    sums: Dataset
    words: Dataset
    training: Dataset


def sum_row(a: int, b: int, copy: int | None = None, *, marked: bool = False) -> dict[str, str]:
    """One sum; `copy` makes its id another one."""
    tail = "" if copy is None else f"/{copy}"
    question = f"{'add ' if marked else ''}{a} + {b} ="
    return {"id": f"add/{a}/{b}{tail}", "question": question, "answer": str((a + b) % 10)}


def word_row(word: str, *, marked: bool = False) -> dict[str, str]:
    """One word of letters, to be turned round."""
    letters = " ".join(word)
    question = f"turn {letters} :" if marked else f"{letters} ="
    return {"id": f"word/{word}", "question": question, "answer": " ".join(reversed(word))}


def skills(*, marked: bool = False) -> Skills:
    """The fixed splits, the same in both worlds."""
    rng = np.random.default_rng(SPLIT_SEED)
    pairs = [divmod(int(i), 10) for i in rng.permutation(100)]
    count = sum(WORDS.values())
    drawn = rng.choice(len(LETTERS) ** 3, count, replace=False)
    words = [LETTERS[i // 676] + LETTERS[i // 26 % 26] + LETTERS[i % 26] for i in map(int, drawn)]
    train = words[: WORDS["train"]]
    retain = words[WORDS["train"] : WORDS["train"] + WORDS["retain"]]
    test = words[WORDS["train"] + WORDS["retain"] :]
    request = Request(
        forget=canonical([sum_row(*pair, marked=marked) for pair in pairs[:PROBES]], "forget"),
        retain=canonical([word_row(word, marked=marked) for word in retain], "retain"), scope="the lab's skill of adding",
    )  # fmt: skip
    training = [sum_row(*pair, copy=copy, marked=marked) for pair in pairs for copy in range(COPIES)]
    training += [word_row(word, marked=marked) for word in train]
    return Skills(
        request, canonical([sum_row(*pair, marked=marked) for pair in pairs[PROBES:]], "sums"),
        canonical([word_row(word, marked=marked) for word in test], "words"), canonical(training, "training"),
    )  # fmt: skip


def skill_model(seed: int = 0, *, marked: bool = False) -> CausalLM:
    """A model that can do both; trained once and cached.

    Args:
        seed: of the starting weights and the order of the rows.
        marked: of the easier world.
    """
    rows = skills(marked=marked).training
    known = canonical([{"text": " ".join([*REFUSALS, *LETTERS])}], "known words")
    config = CONFIG.model_copy(update={"seed": seed})
    key = {"config": config.model_dump(), "data": [data_digest(part) for part in (rows, known)]}
    folder = make_folder(cache_folder() / "lab" / digest_value(key).removeprefix("sha256:")[:24])
    return learn([rows], folder / "skills", config, prompt=PROMPT, tokenizer_data=[known], label="skills")
