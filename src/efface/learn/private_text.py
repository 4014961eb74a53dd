"""DP-MLM: rewrite the protected words of a data set by the exponential mechanism over a masked language model's vocabulary.

DP2Unlearning, arXiv 2504.13774, mechanism b: a model that is then trained on the rewritten text as usual is as private as the
text, by post-processing. The guarantee is for the replaced words alone; `TextPrivacyReport.lines` says so in words.

Departures from the official code, and why: every vocabulary token is a candidate, drawn by its clipped logit. The script that
makes the paper's private text (top 10 of the model, weighted by cosine similarity) has no such bound and is not offered. Words
are found by their characters and replaced each at its own place (the script replaces the first occurrence of a repeated word
and never finds "Paris,"). Each draw looks at the original row. The case of the old word is not carried over: it would leak.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from datasets import Dataset
from pydantic import Field, field_validator

from efface.data.text_privacy import (
    RULES,
    Clip,
    Protect,
    Rule,
    TextPrivacyReport,
    check_clip,
    check_spans,
    clip_range,
    exponential_mechanism,
    replaced,
    rule,
    warn_of_empty_bound,
    word_spans,
)
from efface.errors import ConfigError, EffaceError, RequestError
from efface.run.digests import canonical
from efface.run.progress import track
from efface.run.settings import Settings
from efface.subjects.masked_lm import Gap, MaskedLM
from efface.train.noise_source import NoiseSource, noise_generator

ROBERTA_BASE: Clip = (-5.2093, 20.3048)
"""Clip range of RoBERTa-base in the official code; of no other model."""


class PrivateTextConfig(Settings):
    """DP-MLM. Defaults: DP2Unlearning, TOFU with RoBERTa-base (arXiv 2504.13774)."""

    epsilon: float = Field(100.0, gt=0, description="per replaced word; DP2Unlearning sweeps 0.1 to 250 per token")
    clip: Clip = Field(
        ROBERTA_BASE, description="(c_min, c_max), from public texts; DP2Unlearning: that of RoBERTa-base, for it alone"
    )
    protect: Rule = Field(
        "words", description="words, capitalised or listed; DP2Unlearning: nouns, which takes a tagger (a callable)"
    )
    words: tuple[str, ...] = Field((), description="of the rule listed; ours")
    questions: bool = Field(False, description="rewrite questions as well as answers; ours")
    batch_size: int = Field(16, ge=1, description="gaps in one forward pass; ours")
    seed: int = Field(0, ge=0, description="of the draws, together with the row's id; see noise_from")
    noise_from: NoiseSource = Field(
        "key",
        description="source of the draws: the seed under a secret key of this installation, fresh randomness, or the bare "
        "seed, which whoever reads it can repeat",
    )

    @field_validator("clip")
    @classmethod
    def _sound(cls, value: Clip) -> Clip:
        try:
            check_clip(value)
        except EffaceError as error:
            raise ValueError(str(error)) from error
        return value

    def generator(self, identity: str) -> torch.Generator:
        """Source of the draws of one row."""
        if self.noise_from == "seed":
            digest = hashlib.sha256(canonical(["dp-mlm", self.seed, identity])).digest()
            return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return noise_generator(
            self.noise_from, ["dp-mlm", self.model_dump(mode="json", exclude={"batch_size"}), identity]
        )


def public_clip(model: MaskedLM, texts: Iterable[str], *, batch_size: int = 16) -> Clip:
    """The clip range of a model: smallest and largest logit, each word of some public texts masked in turn.

    Args:
        texts: public ones; no private row may be among them.

    Raises:
        InputError: no words in them, or logits that are NaN.
    """
    gaps = [Gap(text, *span) for text in texts for span in word_spans(text)]
    return clip_range(
        model.logits(gaps[i : i + batch_size], batch_size=batch_size) for i in range(0, len(gaps), batch_size)
    )


def privatise(
    data: Dataset, model: MaskedLM, config: PrivateTextConfig | None = None, *, protect: Protect | None = None
) -> tuple[Dataset, TextPrivacyReport]:
    """Replace every protected word of the answers (and questions, where asked for) by a drawn token.

    The draws of a row depend on the seed, its id, its text and the model.

    Args:
        data: canonical columns with unique ids. Others than id, question and answer (paraphrases, concepts) hold the raw
            text and are left out of the result.
        model: a public masked LM that no row of `data` was used to train.
        config: default: DP2Unlearning's.
        protect: spans of a text's protected words, instead of the config's rule; for example a tagger's nouns.

    Returns:
        the rewritten rows, and what that guarantees.

    Raises:
        RequestError: no rows, no ids or equal ones, an empty answer, no protected word at all, or a text too long for the model.
        ConfigError: RoBERTa-base's clip range for another model.

    Warns:
        TextPrivacyWarning: the composed bound of a row is above 10.
    """
    config = config or PrivateTextConfig()
    if config.clip == ROBERTA_BASE and not is_roberta_base(model):
        raise ConfigError(
            f"the clip range of RoBERTa-base for '{model.source}'", "the model's own",
            "compute it with public_clip from public texts, and set clip",
        )  # fmt: skip
    columns = ("question", "answer") if config.questions else ("answer",)
    chosen = protect or rule(config.protect, config.words)
    spans = protected_spans(data, columns, chosen, model)
    counts = [sum(len(found[column]) for column in columns) for found in spans]
    if not any(counts):
        raise RequestError(f"no protected word in {len(data)} rows", "some", "check the rule (protect, words)")
    found = TextPrivacyReport(
        epsilon=config.epsilon, most=max(counts), replaced=sum(counts), rows=len(data), untouched=counts.count(0),
        clip=config.clip, candidates=int(model.candidates.sum()), columns=columns, noise_from=config.noise_from,
        rule=RULES[config.protect] if protect is None else getattr(protect, "__name__", "the caller's rule"),
    )  # fmt: skip
    warn_of_empty_bound(found)
    words = draw(data, spans, columns, model, config)
    rows = []
    for index, row in enumerate(data.select_columns(["id", "question", "answer"])):
        new = {column: replaced(row[column], spans[index][column], words[index][column]) for column in columns}
        rows.append({**row, **new})
    return Dataset.from_list(rows, features=data.select_columns(["id", "question", "answer"]).features), found


def is_roberta_base(model: MaskedLM) -> bool:
    """Whether the model has the size of RoBERTa-base (not of its distilled or large relatives)."""
    facts = model.model.config
    return facts.model_type == "roberta" and (facts.num_hidden_layers, facts.hidden_size) == (12, 768)


def protected_spans(
    data: Dataset, columns: tuple[str, ...], protect: Protect, model: MaskedLM
) -> list[dict[str, list[tuple[int, int]]]]:
    """Of each row, the protected spans by column; all rows are checked before the first draw.

    Raises:
        RequestError: see `privatise`.
    """
    missing = {"id", "question", "answer"} - set(data.column_names)
    if missing or len(data) == 0:
        raise RequestError(f"{len(data)} rows with the columns {', '.join(data.column_names)}",
                           "rows with id, question and answer", "read them with read_dataset")  # fmt: skip
    seen: set[str] = set()
    spans = []
    for index, row in enumerate(data):
        if row["id"] in seen:  # they would share their noise, and the draws would not be independent
            raise RequestError(f"row {index}: id {row['id']!r} comes twice", "unique ids", "give each row its own")
        seen.add(row["id"])
        if not row["answer"].strip():
            raise RequestError(f"row {index}, column 'answer': empty", "some text", "fill or drop the row")
        found = {c: check_spans(row[c], protect(row[c]), f"row {index}, column '{c}'") for c in columns}
        for column in columns:
            if found[column] and not model.fits(row[column]):
                raise RequestError(
                    f"row {index}, column '{column}': too long for '{model.source}'",
                    f"text and copy within {model.context} tokens", "split it into sentences",
                )  # fmt: skip
        spans.append(found)
    return spans


def draw(
    data: Dataset, spans: list[dict[str, list[tuple[int, int]]]], columns: tuple[str, ...], model: MaskedLM,
    config: PrivateTextConfig,
) -> list[dict[str, list[str]]]:  # fmt: skip
    """Of each row, the new words by column, in the order of the spans."""
    places = [(i, c, span) for i, found in enumerate(spans) for c in columns for span in found[c]]
    texts = {column: list(data[column]) for column in columns}
    generators = [config.generator(str(identity)) for identity in data["id"]]
    words: list[dict[str, list[str]]] = [{column: [] for column in columns} for _ in spans]
    with track("private text", len(places)) as advance:
        for start in range(0, len(places), config.batch_size):
            part = places[start : start + config.batch_size]
            logits = model.logits([Gap(texts[c][i], *span) for i, c, span in part], batch_size=config.batch_size)
            for (i, column, _), row in zip(part, logits, strict=True):  # one by one: batches do not change the draws
                token = exponential_mechanism(
                    row[None], config.clip, config.epsilon, generators[i], allowed=model.candidates
                )
                words[i][column].append(model.words[int(token)])
            advance(len(part))
    return words
