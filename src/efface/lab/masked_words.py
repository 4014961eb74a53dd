"""Masked words: a tiny BERT that fills gaps in sentences of animals, workers, foods, tools and places.

Sentences come from templates and a seed, public ones to train on and others to protect. A training text is a sentence and its
copy, with random words of the copy masked: so the model learns which words are of a kind, and that a masked word may stand
elsewhere in its context, as a large model learns it from repetition in its corpus. Trained by the library's engine, and cached.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from efface.data.columns import canonical
from efface.data.text_privacy import Clip, Protect, listed_words, probabilities
from efface.errors import InputError
from efface.learn.folder import learn_into
from efface.run.cost import Cost, measure_cost
from efface.run.digests import digest_value
from efface.run.files import make_folder
from efface.subjects.masked_lm import Gap, MaskedLM, load_masked_lm
from efface.train.config import TrainConfig
from efface.train.engine import isolated_rng, train
from efface.train.reference import cache_folder
from efface.train.rows import RowSchedule

NOUNS: dict[str, tuple[str, ...]] = {
    kind: tuple(words.split())
    for kind, words in {
        "animal": "cat dog horse goat sheep fox hen duck mouse owl",
        "worker": "baker farmer nurse teacher pilot sailor painter miller",
        "food": "bread cheese soup rice honey fish corn fruit",
        "tool": "hammer rope ladder lamp basket wagon saw spade",
        "place": "barn garden kitchen forest harbour market tower field",
    }.items()
}
TEMPLATES = (
    "the {animal} sleeps in the {place} .",
    "a {worker} carries the {tool} to the {place} .",
    "the {worker} eats {food} in the {place} .",
    "my {animal} likes {food} .",
    "the old {animal} follows the {worker} to the {place} .",
    "the {tool} of the {worker} is in the {place} .",
    "she gives {food} to the {animal} and the {tool} to the {worker} .",
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PUBLIC, PRIVATE = 300, 200
"""Sentences to train on, and others of the same templates to protect."""
MASKED = 0.4
"""Share of the copy's words that a training text masks."""
SIZE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 48, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
CONFIG = TrainConfig(
    learning_rate=5e-3, epochs=50, batch_size=32, weight_decay=0.01, warmup_ratio=0.1, schedule="linear"
)
"""Chosen by how often the model's first choice for a masked noun of new sentences is the noun itself (0.99 and more)."""


@dataclass(frozen=True)
class MaskedWords:
    """The model with its public sentences, and private ones that it has not seen.

    Attributes:
        private: rows with the sentence as the answer.
    """

    model: MaskedLM
    public: tuple[str, ...]
    private: Dataset


def sentences(seed: int) -> tuple[list[str], list[str]]:
    """Public and private sentences, no two alike."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x3A5C]))
    found: dict[str, None] = {}
    while len(found) < PUBLIC + PRIVATE:
        words = {kind: str(rng.choice(names)) for kind, names in NOUNS.items()}
        found[TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(**words)] = None
    both = list(found)
    return both[:PUBLIC], both[PUBLIC:]


def nouns() -> Protect:
    """The rule that protects the nouns, as DP2Unlearning does."""
    return listed_words([word for words in NOUNS.values() for word in words])


@cache
def vocabulary() -> tuple[str, ...]:
    """All tokens in the order of their ids; the same for every seed."""
    plain = {word for template in TEMPLATES for word in template.split() if "{" not in word}
    return (*SPECIAL, *sorted(plain | {word for words in NOUNS.values() for word in words}))


def new_masked_words(seed: int) -> MaskedLM:
    """Untrained: two layers of width 64 over a vocabulary of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(vocabulary())}
    raw = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, ids[name]) for name in ("[CLS]", "[SEP]")],
    )  # fmt: skip
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=SIZE["max_position_embeddings"], **names)
    with isolated_rng(seed):
        model = BertForMaskedLM(BertConfig(vocab_size=len(ids), pad_token_id=0, **SIZE))
    return MaskedLM(model.eval(), tokenizer, source="lab: masked words, untrained")


class _Twice:
    """Row numbers to masked texts: each sentence and its copy, masked by a generator of the item's own."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], seed: int) -> None:
        self.tokenizer, self.texts, self.seed = tokenizer, list(texts), seed

    def __call__(self, items: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """A batch with labels -100 where nothing is masked."""
        chosen = [self.texts[row] for row, _ in items]
        batch = dict(self.tokenizer(chosen, chosen, padding=True, return_tensors="pt", return_token_type_ids=True))
        ids = batch["input_ids"]
        masked = torch.zeros_like(ids, dtype=torch.bool)
        for i, (_, position) in enumerate(items):
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, position]))
            masked[i] = torch.from_numpy(rng.random(ids.shape[1]) < MASKED)
        masked &= (ids >= len(SPECIAL)) & (batch["token_type_ids"] == 1)
        batch["labels"] = ids.masked_fill(~masked, -100)
        batch["input_ids"] = ids.masked_fill(masked, self.tokenizer.mask_token_id)
        return batch


def masked_words(seed: int = 0) -> MaskedWords:
    """Train the model, or load it from the cache.

    Args:
        seed: of the sentences, the starting weights and the order of the training.
    """
    public, private = sentences(seed)
    config = CONFIG.model_copy(update={"seed": seed})
    start = new_masked_words(seed)
    settings = {
        "lab": "masked-words", "config": config.model_dump(), "public": public, "masked": MASKED, "start": start.digest,
    }  # fmt: skip
    out = cache_folder() / "lab" / digest_value(settings).removeprefix("sha256:")[:24]

    def fit(work: Path) -> tuple[MaskedLM, dict[str, Any], Cost]:
        schedule = RowSchedule(len(public), epochs=config.epochs, batch_size=config.batch_size, seed=seed)
        with measure_cost("masked words") as cost:
            log = train(
                start.model, schedule, _loss, config, folder=make_folder(work), label="masked words",
                collator=_Twice(start.tokenizer, public, seed),
            )  # fmt: skip
            cost.items = len(schedule)
        shutil.rmtree(work, ignore_errors=True)
        start.model.eval()
        start.changed()
        return start, {"final_loss": log.values[-1]["loss"]}, cost

    model = learn_into(out, settings, load=lambda: load_masked_lm(out), fit=fit)
    rows = canonical([{"id": f"sentence {i}", "text": text} for i, text in enumerate(private)], "masked words")
    return MaskedWords(model, tuple(public), rows)


def share_kept(before: Dataset, after: Dataset) -> float:
    """Share of the nouns of the answers that stand at their old places; every word is one token between spaces.

    Raises:
        InputError: sentences of other lengths.
    """
    names = {word for words in NOUNS.values() for word in words}
    same: list[bool] = []
    for old, new in zip(before["answer"], after["answer"], strict=True):
        pair = old.split(), new.split()
        if len(pair[0]) != len(pair[1]):
            raise InputError(f"sentences of {len(pair[0])} and {len(pair[1])} words", "the same number")
        same += [a == b for a, b in zip(*pair, strict=True) if a in names]
    return float(np.mean(same))


def chance_kept(model: MaskedLM, data: Dataset, clip: Clip, epsilon: float) -> float:
    """What `share_kept` is on average over the draws of DP-MLM: the mean probability of the noun that is masked."""
    rule = nouns()
    gaps = [Gap(text, *span) for text in data["answer"] for span in rule(text)]
    ids = model.tokenizer.convert_tokens_to_ids([gap.text[gap.start : gap.end] for gap in gaps])
    chances = probabilities(model.logits(gaps, batch_size=64), clip, epsilon, model.candidates)
    return float(chances[torch.arange(len(ids)), torch.tensor(ids)].mean())


def _loss(model: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
    loss = model(**batch).loss
    return loss, {"loss": float(loss.detach())}
