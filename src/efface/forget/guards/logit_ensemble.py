"""Two models, one distribution: a base whose logits an assistant corrects at every decoding step.

Nothing in the base's weights changes. Who's Harry Potter decodes with an assistant that knows the forgotten text better and
takes away what it adds (arXiv 2310.02238; MUSE's inference-time form, arXiv 2407.06460); unlearning from logit difference
(arXiv 2406.08607) takes an assistant away that knows nothing else; offset unlearning adds what training changed in a small
model. Each model has a cache of its own: MUSE's and ULD's wrappers hand one cache to both and then drop it.
"""

from __future__ import annotations

import copy
import inspect
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import DynamicCache

from efface.errors import ConfigError, ModelError, RunError
from efface.forget.edit import Edit, EditFacts
from efface.forget.guards.truncated_copy import first_layers
from efface.run.digests import digest_file
from efface.run.files import read_json, whole_folder, write_json
from efface.run.settings import Settings
from efface.subjects.causal_lm import CausalLM
from efface.subjects.guarded import Asked, GuardedModel, Pass

PASSED = ("input_ids", "attention_mask", "position_ids", "logits_to_keep")
"""What the assistant is given of the base's inputs."""


def centred(logits: Tensor) -> Tensor:
    """Each row minus its mean, [..., V]: two models may differ by a constant a row, which no softmax sees."""
    return logits - logits.mean(-1, keepdim=True)


def generic_logits(v_base: Tensor, v_reinf: Tensor, alpha: float) -> Tensor:
    """v_base - alpha relu(v_reinf - v_base) on centred rows, [..., V] (arXiv 2310.02238, equation 1)."""
    v_base, v_reinf = centred(v_base), centred(v_reinf)
    return v_base - alpha * torch.relu(v_reinf - v_base)


def subtracted_logits(v_base: Tensor, v_assistant: Tensor, alpha: float) -> Tensor:
    """v_base - alpha v_assistant on centred rows, [..., V]: without a filter, the same distribution as on raw ones."""
    return centred(v_base) - alpha * centred(v_assistant)


def kept_tokens(v_base: Tensor, rho: float) -> Tensor:
    """[..., V] bool: the tokens that ULD's filter keeps, those that the base holds likely enough.

    The threshold is the smaller of the n-th largest log-probability, n = max(1, int(rho V)), and the largest plus log rho: the
    kept are the n likeliest and all with at least rho times the largest probability. The code's n = 0 for a small
    vocabulary would read the smallest value of all.

    Args:
        v_base: [..., V] logits of the base.
        rho: in (0, 1].
    """
    logp = v_base.log_softmax(-1)
    largest = logp.topk(max(1, int(rho * logp.shape[-1])), dim=-1).values  # [..., n], falling
    threshold = torch.minimum(largest[..., -1:], largest[..., :1] + math.log(rho))
    return logp >= threshold


def difference_logits(v_base: Tensor, v_assistant: Tensor, alpha: float, rho: float | None = None) -> Tensor:
    """z - alpha a on kept tokens and z elsewhere, [..., V], on raw logits (arXiv 2406.08607, section 3, and its code).

    A filtered token keeps the base's logit; it is not removed. With the filter the result depends on the scale of the
    assistant's rows, so raw logits are the one convention, in greedy search, sampling and scoring.

    Args:
        rho: of `kept_tokens`; None keeps every token.
    """
    if rho is None:
        return v_base - alpha * v_assistant
    return v_base - alpha * v_assistant.masked_fill(~kept_tokens(v_base, rho), 0.0)


def offset_logits(v_base: Tensor, v_after: Tensor, alpha: float, v_before: Tensor) -> Tensor:
    """z + alpha (a_after - a_before), [..., V]: what training changed in a small model is added to a large one."""
    return v_base + alpha * (v_after - v_before)


Combine = Callable[[Tensor, Tensor, float], Tensor]
COMBINE: dict[str, Combine] = {"reinforced": generic_logits, "subtract": subtracted_logits}
RULES = (*COMBINE, "difference", "offset")
"""In the order of their numbers in the digest; a new one goes to the end."""


class Ensemble(Settings):
    """ensemble.json: how the logits are put together."""

    combine: Literal["reinforced", "subtract", "difference", "offset"] = Field(
        description="reinforced: v_b - alpha relu(v_a - v_b); subtract: v_b - alpha v_a; difference: the same on raw logits and "
        "under the filter; offset: v_b + alpha (v_a - v_a before training)"
    )
    alpha: float = Field(ge=0, description="strength")
    rho: float | None = Field(None, gt=0, le=1, description="for difference: the filter of ULD; none keeps every token")
    layers: int | None = Field(None, ge=1, description="the assistant is a copy of so many first layers; none: of all")

    @model_validator(mode="after")
    def _fits(self) -> Ensemble:
        if self.rho is not None and self.combine != "difference":
            raise ValueError("rho belongs to combine=difference")
        return self

    def together(self, v_base: Tensor, v_assistant: Tensor, v_before: Tensor | None = None) -> Tensor:
        """The corrected logits, [..., V]; `v_before` of the assistant before its training, for an offset."""
        if self.combine == "difference":
            return difference_logits(v_base, v_assistant, self.alpha, self.rho)
        if self.combine == "offset":
            assert v_before is not None
            return offset_logits(v_base, v_assistant, self.alpha, v_before)
        return COMBINE[self.combine](v_base, v_assistant, self.alpha)


class LogitEnsemble(GuardedModel):
    """A model with the base's face and corrected logits; `generate` works with both caches.

    Args:
        base: a causal LM.
        assistant: another one over the same tokens; no training passes through it.
        combine: how their logits are put together, and how strongly.
        before: for an offset, the assistant before its training.

    Raises:
        ModelError: vocabularies of two sizes, or an offset from nothing.
    """

    def __init__(self, base: Any, assistant: Any, combine: Ensemble, before: Any = None) -> None:
        super().__init__(base)
        if (combine.combine == "offset") != (before is not None):
            raise ModelError(f"combine={combine.combine} {'with' if before is not None else 'without'} a model from before",
                             "one for an offset, none for any other rule")  # fmt: skip
        sizes = [int(model.get_output_embeddings().weight.shape[0]) for model in (base, assistant)]
        if sizes[0] != sizes[1]:
            raise ModelError(
                f"a base with {sizes[0]} logits and an assistant with {sizes[1]}", "two models over the same tokens",
                "train the assistant with the base's tokenizer",
            )  # fmt: skip
        self.assistant, self.combine, self.before = assistant, combine, before
        for other in (assistant, before):
            for parameter in other.parameters() if other is not None else ():
                parameter.requires_grad_(False)
        # the digest of a guarded model must tell how it is guarded
        self.register_buffer("strength", torch.tensor([combine.alpha], dtype=torch.float64))
        self.register_buffer("rule", torch.tensor([RULES.index(combine.combine)]))
        if combine.rho is not None:
            self.register_buffer("filter", torch.tensor([combine.rho], dtype=torch.float64))
        self._accepts = set(
            inspect.signature(getattr(assistant, "get_base_model", lambda: assistant)().forward).parameters
        )

    def _generate(self, asked: Asked, ids: Tensor, more: dict[str, Any]) -> Any:
        settings = more.get("generation_config") or self.generation_config
        cached = more.get("use_cache", getattr(settings, "use_cache", True))
        if cached is not False and (more.get("num_beams") or getattr(settings, "num_beams", 1) or 1) > 1:
            raise ConfigError(
                "beam search with two models, of which one would have its cache reordered", "greedy search or sampling",
                "set num_beams=1, or use_cache=False",
            )  # fmt: skip
        return super()._generate(asked, ids, more)

    def correct(self, now: Pass, output: Any) -> Any:
        """The base's output with corrected logits; the assistant has a cache of its own."""
        given = {"input_ids": now.ids, **now.given}
        inputs = {name: given[name] for name in PASSED if given.get(name) is not None and name in self._accepts}
        past = getattr(output, "past_key_values", None)
        logits = output.logits
        said = [
            self._said(name, now, inputs, past) for name in ("assistant", "before") if getattr(self, name) is not None
        ]
        output.logits = self.combine.together(logits.float(), *said).to(logits.dtype)
        return output

    def _said(self, name: str, now: Pass, inputs: dict[str, Any], past: Any) -> Tensor:
        """The logits of one of the other models in float32, where the base's are."""
        model, second = getattr(self, name), None
        if past is not None:
            second = now.asked.memory.setdefault(f"cache of {name}", DynamicCache(config=model.config))
        with torch.no_grad():
            theirs = model(**inputs, past_key_values=second, use_cache=second is not None)
        if past is not None and second is not None and second.get_seq_length() != past.get_seq_length():
            raise ModelError(
                f"a cache of {past.get_seq_length()} tokens whose beginning only the base has seen",
                "a cache that this guard began", "start from an empty cache",
            )  # fmt: skip
        found: Tensor = theirs.logits.float().to(now.ids.device)
        return found


def refuse_other_tokens(base: CausalLM, assistant: CausalLM) -> None:
    """Two models can share logits only where every token id means the same.

    Raises:
        ModelError: two tokenizers.
    """
    if base.tokenizer.get_vocab() != assistant.tokenizer.get_vocab():
        raise ModelError(
            "a base and an assistant with different tokenizers", "one tokenizer", "train the assistant with it"
        )


class EnsembleEdit(Edit):
    """A guard as an edit: the assistant is the model itself, or its first layers, under an edit in the folder `assistant/`.

    `edit.json`, `ensemble.json` and `assistant/`. Applying it puts a `LogitEnsemble` around the model; removing it takes the
    wrapper off, and every bit of the model is where it was.
    """

    kind = "logit-ensemble"

    def _apply(self, subject: CausalLM) -> None:
        subject.model = _guarded(subject, self.folder)

    def _remove(self, subject: CausalLM) -> None:
        subject.model = subject.model.base

    @classmethod
    def finish(
        cls, subject: CausalLM, assistant: Edit, combine: Ensemble, folder: Path, *, method: str, config: dict[str, Any]
    ) -> EnsembleEdit:
        """The guard from an edit that makes the assistant out of the subject (or of its first `combine.layers` layers).

        The subject is unchanged on return.
        """
        base, plain = subject.digest, subject.model
        with whole_folder(folder) as partial:
            shutil.copytree(assistant.folder, partial / "assistant")
            write_json(partial / "ensemble.json", combine.model_dump(exclude_none=True))
            try:
                subject.model = _guarded(subject, partial)
                subject.changed()
                edited = subject.digest
            finally:
                subject.model = plain
                subject.changed()
            names = sorted(path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file())
            facts = EditFacts(
                kind=cls.kind, method=method, claim="suppressed", config=config, base_digest=base, edited_digest=edited,
                tensors=0, parameters=0, relative_change=0.0, files={name: digest_file(partial / name) for name in names},
            )  # fmt: skip
            write_json(partial / "edit.json", facts.model_dump())
        return cls(folder)


def _guarded(subject: CausalLM, folder: Path) -> LogitEnsemble:
    """The subject's model with its assistant: a copy, of all or the first layers, under the edit in `assistant/`."""
    try:
        combine = Ensemble.model_validate(read_json(folder / "ensemble.json"))
    except ValueError as error:
        raise RunError(f"{folder / 'ensemble.json'} was changed", "the whole edit folder", "copy it again") from error
    edit = Edit.load(folder / "assistant")
    if combine.layers is None:
        assistant = edited_copy(subject, edit)
    else:
        assistant = first_layers(subject, combine.layers)
        edit.apply(assistant)
    before = None
    if combine.combine == "offset":
        before = (
            first_layers(subject, combine.layers).model if combine.layers else copy.deepcopy(subject.model)
        ).eval()
    return LogitEnsemble(subject.model, assistant.model.eval(), combine, before).train(subject.model.training)


def edited_copy(subject: CausalLM, edit: Edit) -> CausalLM:
    """A second model in memory: the subject under an edit."""
    made = CausalLM(copy.deepcopy(subject.model), subject.tokenizer, prompt=subject.prompt, source=subject.source)
    edit.apply(made)
    return made
