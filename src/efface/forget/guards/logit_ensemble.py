"""Two models, one distribution: a base whose logits an assistant corrects at every decoding step.

Nothing in the base's weights changes. Who's Harry Potter decodes with an assistant that knows the forgotten text better and
takes away what it adds (arXiv 2310.02238; MUSE's inference-time form, arXiv 2407.06460); unlearning from logit difference
(arXiv 2406.08607) takes an assistant away that knows nothing else. Each model has a cache of its own: MUSE's wrapper hands one
cache to both and then drops it.
"""

from __future__ import annotations

import copy
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import DynamicCache

from efface.errors import ConfigError, ModelError, RunError
from efface.forget.edit import Edit, EditFacts
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
    """v_base - alpha v_assistant on centred rows, [..., V] (arXiv 2406.08607, section 3)."""
    return centred(v_base) - alpha * centred(v_assistant)


Combine = Callable[[Tensor, Tensor, float], Tensor]
COMBINE: dict[str, Combine] = {"reinforced": generic_logits, "subtract": subtracted_logits}


class Ensemble(Settings):
    """ensemble.json: how the logits are put together."""

    combine: Literal["reinforced", "subtract"] = Field(
        description="reinforced: v_b - alpha relu(v_a - v_b); subtract: v_b - alpha v_a"
    )
    alpha: float = Field(ge=0, description="strength")


class LogitEnsemble(GuardedModel):
    """A model with the base's face and corrected logits; `generate` works with both caches.

    Args:
        base: a causal LM.
        assistant: another one over the same tokens; no training passes through it.
        combine: how their logits are put together, and how strongly.

    Raises:
        ModelError: vocabularies of two sizes.
    """

    def __init__(self, base: Any, assistant: Any, combine: Ensemble) -> None:
        super().__init__(base)
        sizes = [int(model.get_output_embeddings().weight.shape[0]) for model in (base, assistant)]
        if sizes[0] != sizes[1]:
            raise ModelError(
                f"a base with {sizes[0]} logits and an assistant with {sizes[1]}", "two models over the same tokens",
                "train the assistant with the base's tokenizer",
            )  # fmt: skip
        self.assistant, self.combine = assistant, combine
        for parameter in assistant.parameters():
            parameter.requires_grad_(False)
        # the digest of a guarded model must tell how it is guarded
        self.register_buffer("strength", torch.tensor([combine.alpha], dtype=torch.float64))
        self.register_buffer("rule", torch.tensor([sorted(COMBINE).index(combine.combine)]))
        self._accepts = set(
            inspect.signature(getattr(assistant, "get_base_model", lambda: assistant)().forward).parameters
        )

    def _generate(self, asked: Asked, ids: Tensor, more: dict[str, Any]) -> Any:
        settings = more.get("generation_config") or self.generation_config
        if (more.get("num_beams") or getattr(settings, "num_beams", 1) or 1) > 1:
            raise ConfigError("beam search with two models", "greedy search or sampling", "set num_beams=1")
        return super()._generate(asked, ids, more)

    def correct(self, now: Pass, output: Any) -> Any:
        """The base's output with corrected logits; the assistant has a cache of its own."""
        given = {"input_ids": now.ids, **now.given}
        inputs = {name: given[name] for name in PASSED if given.get(name) is not None and name in self._accepts}
        past = getattr(output, "past_key_values", None)
        second = None
        if past is not None:
            second = now.asked.memory.setdefault("cache", DynamicCache(config=self.assistant.config))
        with torch.no_grad():
            theirs = self.assistant(**inputs, past_key_values=second, use_cache=second is not None)
        if past is not None and second is not None and second.get_seq_length() != past.get_seq_length():
            raise ModelError(
                f"a cache of {past.get_seq_length()} tokens whose beginning only the base has seen",
                "a cache that this guard began", "start from an empty cache",
            )  # fmt: skip
        logits = output.logits
        output.logits = COMBINE[self.combine.combine](logits.float(), theirs.logits.float(), self.combine.alpha).to(
            logits.dtype
        )
        return output


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
    """A guard as an edit: the assistant is the model itself under another edit, which the folder `assistant/` holds.

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
        """The guard from an edit that makes the assistant out of the subject; the subject is unchanged on return."""
        base, plain = subject.digest, subject.model
        with whole_folder(folder) as partial:
            shutil.copytree(assistant.folder, partial / "assistant")
            write_json(partial / "ensemble.json", combine.model_dump())
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
    """The subject's model with its assistant: a copy under the edit in `assistant/`."""
    try:
        combine = Ensemble.model_validate(read_json(folder / "ensemble.json"))
    except ValueError as error:
        raise RunError(f"{folder / 'ensemble.json'} was changed", "the whole edit folder", "copy it again") from error
    assistant = edited_copy(subject, Edit.load(folder / "assistant"))
    return LogitEnsemble(subject.model, assistant.model.eval(), combine).train(subject.model.training)


def edited_copy(subject: CausalLM, edit: Edit) -> CausalLM:
    """A second model in memory: the subject under an edit."""
    made = CausalLM(copy.deepcopy(subject.model), subject.tokenizer, prompt=subject.prompt, source=subject.source)
    edit.apply(made)
    return made
