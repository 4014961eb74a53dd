"""ECO: the weights stay; prompts that touch what is to be forgotten reach the model with corrupted embeddings.

Paper: Liu et al., Large Language Model Unlearning via Embedding-Corrupted Prompts, arXiv 2406.07933 (NeurIPS 2024). Three parts:
a classifier C with a strict threshold says whether a prompt x is aimed at the forget target; if it is, the embeddings of its
tokens become Corrupt(e; sigma, M); and sigma is found by zeroth-order search, so that the score on the forget set becomes v_r,
what a model that never saw the data scores. It is suppression: whoever holds the weights, or words a prompt so that
the classifier misses it, gets everything.

Departures from the official code, and why: only prompt positions are corrupted, under teacher forcing too (there the mask also
covers the answer); which positions are the prompt is said by `GuardedModel`, not guessed from a length above one, so a prompt
of one token is corrupted, and cached, uncached and chunked passes agree; the noise of a prompt is always the same; the search has
a target; the word gate is the default, since it needs no download (`gate=classifier` is the paper's); strengths are
reported against the embeddings' size, sigma / RMS(e), because models scale them differently.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import RequestError
from efface.forget.guards.corrupting_model import Corruption, EcoModel, token_mask
from efface.forget.guards.corruption import WITHOUT_STRENGTH, Kind, check_width
from efface.forget.guards.eco_fit import FittedGate, fitted_gate, forgotten_names, strength_for
from efface.forget.guards.guard_edit import GuardEdit
from efface.forget.guards.prompt_gate import PromptGate
from efface.forget.guards.prompt_parts import NameTagger, PromptReader
from efface.forget.guards.strength_search import SearchConfig
from efface.forget.method import FitConfig, Fitted, Method
from efface.run.cost import measure_cost
from efface.run.files import make_folder, read_json, write_json
from efface.subjects.causal_lm import CausalLM

CARD = Card(
    name="eco",
    system="eco",
    title="Embedding-corrupted prompts (ECO)",
    summary="A classifier picks out the prompts that touch what is to be forgotten, and only their embeddings are corrupted, as "
    "strongly as makes the answers those of a model that never saw the data. No weight changes.",
    paper="Liu et al., Large Language Model Unlearning via Embedding-Corrupted Prompts, arXiv 2406.07933 (NeurIPS 2024)",
    verb="forget",
    mechanism="guards",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "retain"),
    claims="suppressed",
    taxonomy=Taxonomy(
        intention="suppression", mechanism="embedding_corruption", survey_class="filter", level="embedding",
        threat_model="API user without the weights; a paraphrase that the classifier misses passes",
    ),
    defaults_source="official code: noise on the first number, search from 0.1 with mu 0.0999 and eta 100; classifier at "
    "2e-5, weight decay 0.1, 30 epochs of batch 16, cosine, warm-up 10 %, no clipping",
)  # fmt: skip

UNCLIPPED = 1e9
"""A gradient norm that nothing reaches."""


class EcoConfig(FitConfig):
    """Gate, corruption and search. The keys of the optimiser are the classifier's (`gate=classifier`)."""

    gate: Literal["words", "classifier"] = Field(
        "words", description="words: TF-IDF and logistic regression; classifier: the paper's, fine-tuned"
    )
    classifier: str = Field("FacebookAI/roberta-base", description="for gate=classifier: hub id or folder; the paper's")
    threshold: float | None = Field(
        None, ge=0, lt=1, description="tau; default 0.99 for gate=classifier (code, TOFU), 0.5 for gate=words"
    )
    false_alarms: float | None = Field(
        None, gt=0, lt=1, description="conformal: at most this share of retain prompts is stopped; instead of threshold"
    )
    rule: Literal["one-sided", "strict", "safe"] = Field(
        "one-sided", description="with false_alarms: from retain rows alone, or the sets that hold forget and not retain "
        "(strict), or forget (safe)",
    )  # fmt: skip
    calibration_share: float = Field(
        0.25, gt=0, lt=1, description="with false_alarms: rows kept from the gate to calibrate it (ours)"
    )
    corruption: Kind = Field("rand_noise_first_n", description="paper: rand_noise_first_n")
    n: int = Field(1, ge=1, description="numbers of each embedding that are corrupted; paper: 1")
    sigma: Annotated[float, Field(ge=0)] | Literal["search"] = Field(
        "search", description="strength, or search for it; paper: 5, 50 or d on TOFU"
    )
    metric: Literal["probability", "choice"] = Field(
        "probability", description="what the search scores: the mean p(answer)^(1/length), or the share of rows whose answer "
        "beats the perturbed ones",
    )  # fmt: skip
    target: float | None = Field(
        None, ge=0, le=1, description="v_r; default: chance for metric=choice, else the score on the holdout set"
    )
    search_rows: int = Field(64, ge=1, description="at most so many rows are scored in the search (ours)")
    search: SearchConfig = Field(default_factory=SearchConfig, description="zeroth-order search; official code")
    by_dimension: bool = Field(False, description="one strength for each of the n numbers; the code's vector form")
    mask: Literal["entity", "all"] = Field(
        "all",
        description="tokens of the names in the request's concepts, column 'concept' or found by ner; or all but the last",
    )
    ner: str | None = Field(None, description="for mask=entity: a token classifier; the paper's is dslim/bert-base-NER")
    learning_rate: float = Field(2e-5, gt=0, description="official code: 2e-5")
    epochs: float = Field(30, gt=0, description="official code: 30")
    batch_size: int = Field(16, ge=1, description="official code: 16")
    weight_decay: float = Field(0.1, ge=0, description="official code: 0.1")
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="official code: 0.1")
    schedule: Literal["linear", "cosine", "constant"] = Field("cosine", description="official code: cosine")
    max_grad_norm: float = Field(UNCLIPPED, gt=0, description="official code: no clipping")

    @model_validator(mode="after")
    def _one_threshold(self) -> EcoConfig:
        if self.threshold is not None and self.false_alarms is not None:
            raise ValueError("give threshold or false_alarms, not both")
        if self.rule != "one-sided" and self.false_alarms is None:
            raise ValueError(f"rule={self.rule} needs false_alarms")
        if self.sigma == "search" and self.corruption in WITHOUT_STRENGTH:
            raise ValueError(f"corruption={self.corruption} has no strength to search; give sigma=0")
        if self.by_dimension and self.sigma != "search":
            raise ValueError("by_dimension=true is for sigma=search")
        return self

    @property
    def tau(self) -> float:
        """The threshold where none is calibrated."""
        return self.threshold if self.threshold is not None else 0.99 if self.gate == "classifier" else 0.5


class EcoEdit(GuardEdit):
    """`gate/`, `corruption.json`, and `ner/` where there is one."""

    kind = "eco"

    @classmethod
    def build(cls, subject: CausalLM, folder: Path, config: dict[str, Any], seal: str) -> EcoModel:
        gate = PromptGate.read(folder / "gate")
        gate.bind(subject)
        corruption = Corruption.model_validate(read_json(folder / "corruption.json"))
        tagger = NameTagger.load(folder / "ner") if (folder / "ner").exists() else None
        reader = PromptReader(subject.tokenizer, subject.prompt)

        def stops(prompts: list[list[int]]) -> list[bool]:
            views = [reader.views(ids) for ids in prompts]
            fires = gate.fires([text for parts in views for text in parts])
            ends = np.cumsum([len(parts) for parts in views])[:-1]
            return [bool(part.any()) for part in np.split(fires, ends)]

        return EcoModel(
            subject.model, seal, stops=stops, mask=token_mask(subject, corruption.names, tagger), corruption=corruption
        )


class Eco(Method):
    """See the module."""

    card = CARD
    config_class = EcoConfig

    def fit(self, subject: CausalLM, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """Fit the gate, find the strength, store both; see `Method.fit`.

        Raises:
            RequestError: no retain set, too few rows to calibrate with, mask=entity without a name, or nothing that says
                what the search should reach.
            ConfigError: n larger than the embeddings.
        """
        assert isinstance(config, EcoConfig)
        self.check(request, config)
        check_width(config.corruption, config.n, subject.model.get_input_embeddings().weight.shape[1])
        names = forgotten_names(request) if config.mask == "entity" else []
        if config.mask == "entity" and not names and config.ner is None:
            raise RequestError(
                "mask=entity without a name",
                "names with --concept, a column 'concept', or ner=MODEL",
                "or use mask=all",
            )
        if (
            config.sigma == "search"
            and config.metric == "probability"
            and config.target is None
            and not request.holdout
        ):
            raise RequestError(
                "a search for the strength without a target", "target=..., a holdout set, or metric=choice",
                "say what a model that never saw the data scores, or give sigma",
            )  # fmt: skip
        make_folder(work)
        tagger = NameTagger.load(config.ner) if config.mask == "entity" and config.ner else None
        with measure_cost(f"fit {CARD.name}") as cost:
            gate = fitted_gate(subject, request, config, work)
            mask = token_mask(subject, names, tagger)
            first = Corruption(
                kind=config.corruption, n=config.n, sigma=[0.0], seed=config.seed, names=names
            )  # fmt: skip
            open_ = EcoModel(subject.model, None, stops=lambda rows: [True] * len(rows), mask=mask, corruption=first)
            strength = strength_for(subject, open_, request, config, cost)
        corruption = first.model_copy(update={"sigma": strength.sigma})
        edit = EcoEdit.finish(
            subject, _writer(gate, corruption, tagger), out, method=CARD.name, config=config.model_dump(mode="json")
        )
        edit = edit.with_findings("found", {**gate.facts, **strength.facts})
        shutil.rmtree(work, ignore_errors=True)
        _say(gate.facts, strength.facts)
        return Fitted(edit, [cost], gate.log)


def _writer(gate: FittedGate, corruption: Corruption, tagger: NameTagger | None) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        gate.gate.write(folder / "gate")
        write_json(folder / "corruption.json", corruption.model_dump(mode="json"))
        if tagger is not None:
            tagger.save(make_folder(folder / "ner"))

    return write


def _say(gate: Mapping[str, Any], strength: Mapping[str, Any]) -> None:
    """Warn where the guard will not do what it is for."""
    if gate["forget_stopped"] < 1:
        warnings.warn(
            f"eco: the gate stops {gate['forget_stopped']:.0%} of the forget prompts; lower threshold, or allow more false "
            "alarms", stacklevel=3,
        )  # fmt: skip
    if strength.get("reached") is False:
        warnings.warn(
            f"eco: the nearest score to the target {strength['target']:.3f} is {strength['score']:.3f}; corrupt more numbers "
            "(n), or another kind", stacklevel=3,
        )  # fmt: skip


__all__ = ["EcoConfig", "EcoEdit"]

METHOD = Eco()
