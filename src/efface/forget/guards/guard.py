"""GUARD: a classifier says which prompts aim at the forget set, and their answers are searched for without the forgotten phrases.

Paper: GUARD, Generation-time LLM Unlearning via Adaptive Restriction and Detection, arXiv 2505.13312. Three steps: a
classifier on the mean hidden state of the prompt (`hidden_gate`), phrases out of the answers of the nearest forget rows
(`forbidden_phrases`, `key_phrases`), and beam search that neither says them nor what means the same (`restricted_decoding`).
Nothing in the weights changes: the knowledge is there for whoever reads the weights, and the index holds the forget text.

No official code was found. Choices of ours, and why: the threshold can be calibrated on retain prompts held out from the fit
(`false_alarms`); answers are checked as decoded text too, since a text has many tokenisations; a phrase may begin in the
prompt; finished beams that hold more than half of a phrase are dropped; a beam that is left with nothing gives a refusal; the
penalty by meaning needs `encoder` and is off without one; score tables see a renormalised distribution (`phrase_guard`).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from pydantic import Field

from efface.catalog import Card, Taxonomy
from efface.data.refusals import REFUSALS
from efface.data.request import Request
from efface.errors import ConfigError, ModelError
from efface.forget.guards.abstention import Abstention
from efface.forget.guards.forbidden_phrases import HashedIndex, PhraseIndex, PlainIndex, Retrieve
from efface.forget.guards.guard_edit import GuardEdit
from efface.forget.guards.hidden_gate import HiddenGate
from efface.forget.guards.key_phrases import (
    Extractor,
    content_words,
    names_and_numbers,
    phrases_by_model,
    whole_answer,
    word_ngrams,
)
from efface.forget.guards.phrase_guard import PhraseGuard
from efface.forget.guards.prompt_gate import PromptGate, WordGate
from efface.forget.guards.restricted_decoding import Restrictor, Rules
from efface.forget.method import FitConfig, Fitted, Method
from efface.run.cost import measure_cost
from efface.subjects.causal_lm import CausalLM
from efface.subjects.prompts import encode_prompt
from efface.subjects.text_index import sentence_embedding

CARD = Card(
    name="guard",
    system="guard",
    title="GUARD: prompt classifier and restricted decoding",
    summary="Prompts that aim at the forget set are detected from the model's own hidden states; their answers are decoded "
    "without the phrases that would give the forgotten away. Every other prompt is answered as before, bit for bit.",
    paper="Deng et al., GUARD: Generation-time LLM Unlearning via Adaptive Restriction and Detection, arXiv 2505.13312 (2025)",
    verb="forget",
    mechanism="guards",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "retain", "forget-index-at-inference"),
    claims="suppressed",
    taxonomy=Taxonomy(
        intention="suppression", mechanism="output_filter", survey_class="filter", level="output",
        threat_model="API user who sees answers only; weights and index are the operator's",
    ),
    defaults_source="paper, as far as known: classifier of two layers, 256 wide, dropout 0.1, Adam 1e-3, 10 epochs; cosine "
    "0.5; 5 to 7 beams (all unverified); the rest is efface's choice and says so",
)  # fmt: skip

OPENING = 32
"""Words of a row without a question by which it is recognised and found."""


class GuardConfig(FitConfig, Rules):
    """The classifier, the phrases, and the search (`Rules`)."""

    learning_rate: float = Field(1e-3, gt=0, description="of the classifier; paper: Adam 1e-3 (u)")
    epochs: float = Field(10, gt=0, description="of the classifier; paper: 10 (u)")
    batch_size: int = Field(32, ge=2, description="prompts in a step of the classifier (efface's choice)")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adam", description="paper: Adam (u)")
    weight_decay: float = Field(0.0, ge=0, description="paper: Adam without decay (u)")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="paper: none (u)")
    schedule: Literal["linear", "cosine", "constant"] = Field("constant", description="paper: constant (u)")
    gate: Literal["hidden", "words"] = Field(
        "hidden", description="paper: hidden states; words: TF-IDF, no model needed"
    )
    layer: int | None = Field(
        None, ge=0, description="states after this layer, from 0; default the last but one (paper)"
    )
    hidden: int = Field(256, ge=1, description="width of the classifier; paper: 256 (u)")
    dropout: float = Field(0.1, ge=0, lt=1, description="of the classifier; paper: 0.1 (u)")
    threshold: float = Field(0.5, ge=0, le=1, description="paper: p(forget) > p(retain), so 0.5")
    false_alarms: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="calibrate the threshold: at most this share of prompts like the retain set's is stopped",
    )
    calibration_share: float = Field(
        0.25, gt=0, lt=1, description="retain prompts kept from the fit for `false_alarms`"
    )
    extractor: Extractor = Field(
        "content", description="what is forbidden: content words, names (and numbers, rare words), the whole answer, ngrams, "
        "or what the model itself names when asked; paper: key phrases by an LLM (u)"
    )  # fmt: skip
    ngram: int = Field(8, ge=1, description="words, for extractor=ngrams (efface's choice)")
    top_k: int = Field(3, ge=1, description="nearest forget rows whose phrases are put together; paper: 1")
    retrieve: Retrieve = Field("nearest", description="entity: all phrases of the nearest rows' concepts")
    encoder: str | None = Field(
        None, description="folder or hub id of a sentence encoder (paper: SBERT), for retrieval and the penalty by meaning; "
        "default: retrieval by words and no such penalty"
    )  # fmt: skip
    hashed: bool = Field(
        False, description="keep keyed hashes of the phrases instead of text; no retrieval, no meaning"
    )
    refusal: str = Field(REFUSALS[0], description="the answer where nothing else is left")
    floor: float = Field(1e-10, ge=0, lt=1, description="probability of a banned token in score tables; 0: none")


class PhraseGuardEdit(GuardEdit):
    """`gate/`, `index.json` and the configuration."""

    kind = "phrase-guard"

    @classmethod
    def build(cls, subject: CausalLM, folder: Path, config: dict[str, Any], seal: str) -> PhraseGuard:
        own = GuardConfig(**config)
        gate = PromptGate.read(folder / "gate")
        gate.bind(subject)
        embed = None if own.encoder is None else sentence_embedding(own.encoder)
        index = PhraseIndex.read(folder / "index.json", embed)
        rules = Rules(**{name: getattr(own, name) for name in Rules.model_fields})
        restrictor = Restrictor(subject.tokenizer, rules, subject.stop_ids(), embed)
        return PhraseGuard(
            subject.model, gate, index, restrictor, Abstention.of(subject, own.refusal), own.floor, seal
        )  # fmt: skip


class Guard(Method):
    """See the module."""

    card = CARD
    config_class = GuardConfig

    def fit(self, subject: CausalLM, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """Fit the gate, extract the phrases, write the guard; the subject is only read. See `Method.fit`.

        Raises:
            RequestError: no retain set.
            ConfigError: settings that contradict each other.
            ModelError: the refusal cannot be written in the model's tokens.
        """
        assert isinstance(config, GuardConfig)
        self.check(request, config)
        check_settings(config)
        Abstention.of(subject, config.refusal)  # before the work, not after it
        assert request.retain is not None
        with measure_cost(f"fit {CARD.name}") as cost:
            forget, keep = asked_texts(subject, request.forget), asked_texts(subject, request.retain)
            gate, log = self._gate(subject, forget, keep, config, work)
            phrases = extract(subject, request.forget["answer"], request.retain["answer"], config)
            index = self._index(request.forget, forget, phrases, config)
            cost.items = len(forget) + len(keep)

        def write(folder: Path) -> None:
            gate.write(folder / "gate")
            index.write(folder / "index.json")

        edit = PhraseGuardEdit.finish(subject, write, out, method=CARD.name, config=config.model_dump(mode="json"))
        shutil.rmtree(work, ignore_errors=True)
        found = {
            "threshold": gate.threshold, "rows": len(phrases), "phrases": sum(map(len, phrases)),
            "rows_without_phrases": sum(not row for row in phrases),
        }  # fmt: skip
        return Fitted(edit.with_findings("found", found), [cost], log)

    def _gate(
        self, subject: CausalLM, forget: list[str], keep: list[str], config: GuardConfig, work: Path
    ) -> tuple[PromptGate, list[dict[str, float]]]:
        """The gate with its threshold."""
        held: list[str] = []
        if config.false_alarms is not None:
            order = np.random.default_rng(np.random.SeedSequence([config.seed, 0x6A2D])).permutation(len(keep))
            n = round(config.calibration_share * len(keep))
            held, keep = [keep[i] for i in order[:n]], [keep[i] for i in order[n:]]
        gate: PromptGate
        log: list[dict[str, float]] = []
        if config.gate == "words":
            gate = WordGate.fit(forget, keep, seed=config.seed)
        else:
            gate, log = HiddenGate.fit(
                subject, forget, keep, config, work=work / "gate", layer=config.layer, hidden=config.hidden,
                dropout=config.dropout,
            )  # fmt: skip
        gate.threshold = config.threshold
        return (gate if config.false_alarms is None else gate.calibrated(held, config.false_alarms)), log

    def _index(
        self, data: Dataset, prompts: list[str], phrases: list[list[str]], config: GuardConfig
    ) -> PhraseIndex:  # fmt: skip
        if config.hashed:
            drawn = torch.Generator().manual_seed(config.seed)
            salt = bytes(torch.randint(0, 256, (16,), generator=drawn).tolist()).hex()
            return HashedIndex.of((phrase for row in phrases for phrase in row), salt)
        concepts = list(data["concept"]) if "concept" in data.column_names else None
        embed = None if config.encoder is None else sentence_embedding(config.encoder)
        return PlainIndex(prompts, phrases, concepts, top_k=config.top_k, retrieve=config.retrieve, embed=embed)


def check_settings(config: GuardConfig) -> None:
    """Refuse what contradicts itself.

    Raises:
        ConfigError: a scope (no weight moves), or hashes beside what needs or keeps the text.
    """
    if config.scope != "all":
        raise ConfigError(f"scope={config.scope} for guard", "no scope", "leave it out: no weight of the model moves")
    if config.hashed:
        for key, value, plain in (("gate", config.gate, "hidden"), ("encoder", config.encoder, None)):
            if value != plain:
                raise ConfigError(
                    f"hashed=true with {key}={value}",
                    f"{key}={plain}",
                    "a gate of words keeps them, and hashes have no meaning",
                )
        if config.retrieve != "nearest":
            raise ConfigError("hashed=true with retrieve=entity", "no retrieval: all phrases are forbidden at once")


def asked_texts(subject: CausalLM, data: Dataset) -> list[str]:
    """The prompts of a data set as a guard will read them; the opening words of rows that are no questions.

    Raises:
        ModelError: a prompt of which nothing is left without special tokens.
    """
    texts = []
    for i, (question, answer) in enumerate(zip(data["question"], data["answer"], strict=True)):
        if not question:
            texts.append(" ".join(answer.split()[:OPENING]))
            continue
        ids = encode_prompt(subject.tokenizer, subject.prompt, question, context=subject.context, place=f"row {i}")
        texts.append(str(subject.tokenizer.decode(ids, skip_special_tokens=True)).strip())
        if not texts[-1]:
            raise ModelError(
                f"row {i}: the tokenizer leaves nothing of the prompt '{question[:40]}'", "readable tokens"
            )
    return texts


def extract(subject: CausalLM, answers: list[str], kept: list[str], config: GuardConfig) -> list[list[str]]:
    """[n] phrases of each answer; where the model names none, content words."""
    if config.extractor == "names":
        common = frozenset(word for text in kept for word in text.lower().split())
        return [names_and_numbers(text, common) for text in answers]
    if config.extractor == "ngrams":
        return [word_ngrams(text, config.ngram) for text in answers]
    if config.extractor == "answer":
        return [whole_answer(text) for text in answers]
    if config.extractor == "content":
        return [content_words(text) for text in answers]
    named = phrases_by_model(subject, answers)
    return [found or content_words(text) for found, text in zip(named, answers, strict=True)]


METHOD = Guard()

__all__ = ["CARD", "METHOD", "Guard", "GuardConfig", "PhraseGuardEdit", "asked_texts", "check_settings", "extract"]
