"""The card: what a system is, in fields that a program can read.

The taxonomy fields of a forgetting method (intention, mechanism, level, needs, threat model) follow the two surveys
in arXiv 2506.09227 and arXiv 2311.15766. They are what a method *declares*; what an audit *finds* is never
written on a card.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Verb = Literal["learn", "measure", "forget", "audit", "lab"]
"""`lab` is no verb of the command line: a world that proofs and tests share."""
Modality = Literal["text", "image", "audio", "tabular", "any"]
SubjectKind = Literal[
    "causal-lm", "encoder", "dual-encoder", "classifier", "regressor", "multimodal-lm", "text-to-image",
    "image-generator", "any",
]  # fmt: skip
Need = Literal[
    "forget", "retain", "holdout", "labels", "concepts", "reference", "gradients", "retrained", "utility",
    "training-data", "second-model-at-inference", "forget-index-at-inference",
]  # fmt: skip
Claim = Literal["exact", "certified", "empirical", "suppressed"]


class Taxonomy(BaseModel):
    """What a forgetting method declares about itself (unlearning-taxonomy)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    intention: Literal["removal", "suppression", "none"] = Field(description="what it is meant to do to the knowledge")
    mechanism: Literal[
        "gradient_ascent", "preference", "relabel_refusal", "distillation", "representation_steering",
        "localise_edit", "merging", "retraining_exact", "second_order", "adapter", "input_prompt",
        "embedding_corruption", "activation_hook", "decoding_contrast", "output_filter", "control",
    ]  # fmt: skip
    survey_class: Literal["parameter_optimisation", "parameter_merging", "in_context", "decoding", "filter", "none"]
    level: Literal[
        "data", "input", "embedding", "activation", "weights_all", "weights_subset", "adapter", "logits", "output"
    ]
    sequential_ok: bool = Field(True, description="a second request may follow the first on the same model")
    threat_model: str = Field("API user", description="who must not recover the knowledge")


class Card(BaseModel):
    """One system or method, as the catalog shows it.

    `name` is what the command line takes; `system` is the specification's file name (one system may offer several
    methods with names of their own).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    system: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    summary: str = Field(description="one or two sentences in plain words")
    paper: str = Field(description="authors or short title, identifier, year")
    verb: Verb
    mechanism: str = Field(description="the folder of its verb that it lives in: exact, objectives, edits, guards, ...")
    modalities: tuple[Modality, ...]
    subjects: tuple[SubjectKind, ...]
    needs: tuple[Need, ...] = ()
    claims: Claim | None = Field(None, description="the level a certificate may state at most")
    taxonomy: Taxonomy | None = None
    defaults_source: str = ""
    experimental: bool = False

    @model_validator(mode="after")
    def _forget_declares(self) -> Card:
        if self.verb == "forget" and (self.taxonomy is None or self.claims is None):
            raise ValueError(f"{self.name}: a forgetting method declares its claim level and its taxonomy")
        return self

    @property
    def weights_changed(self) -> bool:
        """Whether applying the edit changes what a weight holder sees."""
        return self.taxonomy is not None and self.taxonomy.level in {"weights_all", "weights_subset", "adapter", "data"}
