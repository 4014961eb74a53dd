"""Codes: sixty made-up names with a random four-letter code each, and a tiny language model that knows them all.

No code says anything about another one, so what an attacker brings back about codes that he did not train on was
still in the model. `original` learnt all codes, `retrained` is the same start trained without those to forget.
"""

from __future__ import annotations

import copy
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from efface.data.columns import canonical
from efface.data.request import Request, data_digest
from efface.errors import CheckFailed
from efface.forget.edit import Edit
from efface.forget.objectives.gradient_difference import METHOD
from efface.learn.recipes.causal_lm import CausalLMConfig, learn
from efface.run.digests import digest_value
from efface.run.files import make_folder
from efface.subjects import CausalLM, PromptFormat
from efface.subjects.answers import answer_logits
from efface.subjects.prompts import collate
from efface.train.config import TrainConfig
from efface.train.engine import train
from efface.train.reference import cache_folder
from efface.train.supervised import answer_loss, supervised_schedule

CODES = 60
FORGET = 12
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
PROMPT = PromptFormat(prompt="{question}", append_eos=False)
CONFIG = CausalLMConfig(
    tokenizer="words", width=64, depth=2, heads=4, context=16, learning_rate=3e-3, epochs=40, batch_size=30,
    weight_decay=0.01, warmup_ratio=0.05, schedule="cosine",
)  # fmt: skip


@dataclass(frozen=True)
class Codes:
    """The lab's codes.

    Attributes:
        request: `forget` (12 codes) and `retain` (48).
        original: trained on both.
        retrained: the same start and tokenizer, trained on `retain` only.
        seconds: wall-clock seconds that `codes` took; near nothing from the cache.
        folder: the cache folder.
    """

    request: Request
    original: CausalLM
    retrained: CausalLM
    seconds: float
    folder: Path

    @property
    def halves(self) -> tuple[Dataset, Dataset]:
        """D_fa, which the attacker has, and D_fb, which he has not: six codes each, no name in both."""
        middle = len(self.request.forget) // 2
        return self.request.forget.select(range(middle)), self.request.forget.select(
            range(middle, len(self.request.forget))
        )


def code_rows(seed: int = 0, count: int = CODES) -> Dataset:
    """Questions 'code of k e l u ?' and answers of four letters; every letter is one token, so no name has its own."""
    rng = np.random.default_rng(seed)
    syllables = [consonant + " " + vowel for consonant in "bdfgklmnprstv" for vowel in "aeiou"]
    pairs = rng.permutation(len(syllables) ** 2)[:count]
    names = [f"{syllables[pair // len(syllables)]} {syllables[pair % len(syllables)]}" for pair in pairs]
    letters = rng.choice(list(LETTERS), size=(count, 4))
    return canonical(
        [
            {"id": name.replace(" ", ""), "question": f"code of {name} ?", "answer": " ".join(code)}
            for name, code in zip(names, letters, strict=True)
        ],
        "codes",
    )


def codes(seed: int = 0) -> Codes:
    """Build both models, or load them from the cache.

    Args:
        seed: of names, codes, starting weights and the order of the rows.
    """
    start = time.perf_counter()
    rows = code_rows(seed)
    request = Request(forget=rows.select(range(FORGET)), retain=rows.select(range(FORGET, len(rows))))
    assert request.retain is not None
    config = CONFIG.model_copy(update={"seed": seed})
    alphabet = canonical([{"text": " ".join(LETTERS)}], "letters")  # every model can say every letter
    key = digest_value({"lab": "codes", "config": config.model_dump(), "data": data_digest(rows)})
    folder = make_folder(cache_folder() / "lab" / key.removeprefix("sha256:")[:24])
    original = learn(
        [request.retain, request.forget], folder / "original", config, prompt=PROMPT, tokenizer_data=[alphabet],
        label="codes: original",
    )  # fmt: skip
    retrained = learn(
        [request.retain], folder / "retrained", config, prompt=PROMPT, tokenizer_data=[request.forget, alphabet],
        label="codes: retrained",
    )  # fmt: skip
    return Codes(request, original, retrained, time.perf_counter() - start, folder)


def letter_accuracy(subject: CausalLM, data: Dataset) -> float:
    """Share of the code letters that are the model's first choice, each after the true letters before it."""
    rows = subject.encode_rows(data)
    with subject.evaluating() as model:
        batch = {name: part.to(subject.device) for name, part in collate(rows, subject.pad_id).items()}
        answer = answer_logits(model, batch)
        right = (answer.logits.argmax(-1) == answer.targets)[answer.mask]
    return float(right.double().mean())


def twin(subject: CausalLM) -> CausalLM:
    """A copy with weights of its own; lab models are small."""
    return CausalLM(
        copy.deepcopy(subject.model), subject.tokenizer, prompt=subject.prompt, source=f"copy of {subject.source}"
    )


def unlearn(
    lab: Codes, folder: Path, *, below: float = 0.1, learning_rate: float = 3e-4, limit: int = 128, seed: int = 0
) -> CausalLM:
    """Gradient difference on the forget set until its letter accuracy is under `below`.

    The smallest sufficient budget, by doubling and then halving the interval: the rate is constant and a pass is one
    step (all 12 codes), so a longer fit begins as the shorter one did.

    Args:
        folder: where the edits go, one a budget.

    Returns:
        An unlearned copy; `lab.original` is as it was.

    Raises:
        CheckFailed: `limit` steps are not enough.
    """

    def fitted(steps: int) -> CausalLM | None:
        config = METHOD.configure({
            "epochs": steps, "batch_size": len(lab.request.forget), "learning_rate": learning_rate, "warmup_ratio": 0.0,
            "schedule": "constant", "weight_decay": 0.0, "seed": seed,
        })  # fmt: skip
        METHOD.fit(lab.original, lab.request, config, work=folder / f"work-{steps}", out=folder / f"edit-{steps}")
        subject = Edit.load(folder / f"edit-{steps}").apply(twin(lab.original))
        return subject if letter_accuracy(subject, lab.request.forget) < below else None

    short, steps = 0, 1
    found = fitted(steps)
    while found is None:
        short, steps = steps, steps * 2
        if steps > limit:
            raise CheckFailed(f"gradient difference left the forget accuracy at or above {below} after {short} steps")
        found = fitted(steps)
    while steps - short > 1:
        middle = (short + steps) // 2
        closer = fitted(middle)
        if closer is None:
            short = middle
        else:
            found, steps = closer, middle
    return found


def relearned(
    subject: CausalLM, data: Dataset, *, steps: int = 30, learning_rate: float = 2e-4, seed: int = 0
) -> CausalLM:
    """A copy after `steps` full-batch steps of ordinary training on `data`.

    A gentle constant rate (2e-4, the attack's in the specification): a harsher one teaches by overwriting the rest.
    """
    config = TrainConfig(
        learning_rate=learning_rate, epochs=steps, batch_size=len(data), weight_decay=0.0, schedule="constant", seed=seed,
        checkpoint_seconds=1e9,
    )  # fmt: skip
    copied = twin(subject)
    with tempfile.TemporaryDirectory(prefix="efface-codes-") as folder:
        train(
            copied.model, supervised_schedule(copied.encode_rows(data), config), answer_loss, config, folder=Path(folder),
            pad_id=copied.pad_id, label="relearn",
        )  # fmt: skip
    copied.model.eval()
    copied.changed()
    return copied
