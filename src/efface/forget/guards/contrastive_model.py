"""A model that decodes by contrast: up to three passes a token, each with a cache of its own.

The base runs as it always does and is read at lower layers by hooks; the amateur runs beside it; the base runs once more with
an instruction before the prompt. A lower layer's distribution goes through the base's own final norm once: the states are
taken where a layer hands them on, before that norm, not from `hidden_states`, whose last entry is normed already.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from transformers import DynamicCache

from efface.errors import ConfigError, ModelError
from efface.forget.guards.contrastive_decoding import (
    GENERATING,
    SCORING,
    at_layer,
    candidate_layers,
    dola_scores,
    farthest_layer,
    icd_scores,
    lol_scores,
    masked,
    plausible,
)
from efface.forget.guards.early_exit import exit_logits, exit_site, refuse_other_head
from efface.forget.guards.instructed import instructed
from efface.run.settings import Settings
from efface.subjects.guarded import Asked, GuardedModel, Pass
from efface.subjects.hooks import Site, layers_of, recorded

PASSED = ("input_ids", "attention_mask", "position_ids", "logits_to_keep")
"""What the other passes are given of the base's inputs."""


class Contrast(Settings):
    """What is contrasted, and how strongly."""

    mode: Literal["cd", "dola", "icd", "lol"] = Field(
        "lol",
        description="cd: a weaker model; dola: a lower layer; icd: a copy that knows the forget set; lol: that at two layers",
    )
    keep: float = Field(
        1.0, ge=0, description="weight of log p_b beside the contrast; 1: unlearning; published (truthfulness): 0"
    )
    strength: float = Field(1.0, ge=0, description="weight of the last layer's contrast (published: 1)")
    relu: bool = Field(
        False, description="only what the amateur holds likelier is taken away (Who's Harry Potter's rule)"
    )
    alpha: float = Field(
        0.0, ge=0, le=1,
        description="plausibility; published 0.1, and 0 in scoring. At 0.1 a token that the model is sure of is the only "
        "plausible one, and cannot be forgotten",
    )  # fmt: skip
    omega: float = Field(0.5, ge=0, description="lol: weight of the lower layer's contrast (ours; tune it)")
    gamma: float = Field(0.5, ge=0, description="lol: weight of the instruction's effect (ours; tune it)")
    layer: int | Literal["dynamic"] | None = Field(
        None,
        description="lol: the lower layer (0: the embedding); default half the depth (ours); dynamic: DoLa's choice",
    )
    candidates: str = Field(
        "high", description="dola and layer=dynamic: low, high (DoLa: TruthfulQA), or numbers '0,2'"
    )
    dola_compat: bool = Field(False, description="choose layers by the divergence as DoLa's code computes it")
    amateur_temperature: float = Field(1.0, gt=0, description="cd: temperature on the amateur")

    @field_validator("candidates", mode="before")
    @classmethod
    def _one_candidate(cls, value: Any) -> Any:
        """`candidates=0` on a command line is read as a number."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class ContrastiveModel(GuardedModel):
    """The base under contrastive decoding.

    Scores stand where logits stood: their softmax is the distribution. Implausible tokens get -inf in generation and -1000
    where answers are scored. A repetition penalty and a temperature of `generate` act on the scores.

    Args:
        base: a causal LM.
        contrast: see there.
        amateur: a causal LM with the base's tokens; none for dola. No training passes through it.
        instruction: token ids that the third pass sees before the prompt, after a beginning token.
        bos: the beginning token, where the tokenizer has one.

    Raises:
        ConfigError: no such layer, no amateur where one is needed, or for lol one of another depth.
        ModelError: the model's logits are not its head on its normed last layer, so that no lower layer can be read.
    """

    def __init__(
        self, base: Any, contrast: Contrast, seal: str | None = None, *, amateur: Any = None,
        instruction: Sequence[int] = (), bos: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(base, seal)
        if (contrast.mode == "dola") != (amateur is None):
            raise ConfigError(
                f"mode={contrast.mode} {'without' if amateur is None else 'with'} an amateur", "none for dola, one else"
            )
        self.contrast, self.amateur, self.bos = contrast, amateur, bos
        self.instruction = tuple(instruction) if contrast.mode == "lol" and contrast.gamma else ()
        self.exits = exit_layers(contrast, len(layers_of(base)))
        for parameter in amateur.parameters() if amateur is not None else ():
            parameter.requires_grad_(False)
        for model in (base, *([amateur] if contrast.mode == "lol" else [])) if self.exits else ():
            refuse_other_head(model)
        if amateur is not None and contrast.mode == "lol" and len(layers_of(amateur)) != len(layers_of(base)):
            raise ConfigError("mode=lol with an amateur of another depth", "a copy of the base", "use mode=cd")

    # -- the face of the base ---------------------------------------------------------------------------------------

    def _generate(self, asked: Asked, ids: Tensor, more: dict[str, Any]) -> Any:
        settings = more.get("generation_config") or self.generation_config
        beams = more.get("num_beams") or getattr(settings, "num_beams", 1) or 1
        cached = more.get("use_cache", getattr(settings, "use_cache", True)) is not False
        if beams > 1 and cached and (self.amateur is not None or self.instruction):
            raise ConfigError(
                "beam search with a second cache, which would not be reordered", "greedy search or sampling",
                "set num_beams=1, or use_cache=False",
            )  # fmt: skip
        if self.instruction and self._limit() and more.get("max_new_tokens"):
            room = self._limit() - ids.shape[1] - len(self.instruction)
            more["max_new_tokens"] = max(1, min(more["max_new_tokens"], room))
        return super()._generate(asked, ids, more)

    def _limit(self) -> int:
        """Longest sequence that the architecture takes; 0 where it does not say."""
        config = self.base.config
        return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 0)

    @contextlib.contextmanager
    def acting(self, now: Pass) -> Iterator[None]:
        """The base's lower layers are read while it runs."""
        with recorded(self.base, map(exit_site, self.exits), detach=False) as found:
            now.asked.memory["states"] = found
            yield

    def correct(self, now: Pass, output: Any) -> Any:
        """The scores in place of the logits."""
        states = now.asked.memory.pop("states", {})
        logits, how = output.logits, self.contrast
        past = getattr(output, "past_key_values", None)
        b = logits.float().log_softmax(-1)
        low = [self._exit(self.base, states, layer, now).float().log_softmax(-1) for layer in self.exits]
        if how.mode == "dola":
            scores = dola_scores(b, torch.stack(low), keep=how.keep, compat=how.dola_compat)
        else:
            scores = self._against_amateur(now, past, b, low)
        width = scores.shape[-1]
        kept = plausible(b, how.alpha)
        if width < b.shape[-1]:  # padded rows of the base's embedding, which the amateur has not
            scores = torch.nn.functional.pad(scores, (0, b.shape[-1] - width))
            kept = kept & (torch.arange(b.shape[-1], device=kept.device) < width)
        output.logits = masked(scores, kept, GENERATING if now.asked.generating else SCORING).to(logits.dtype)
        return output

    # -- the other passes -------------------------------------------------------------------------------------------

    def _against_amateur(self, now: Pass, past: Any, b: Tensor, low: list[Tensor]) -> Tensor:
        """Scores of cd, icd and lol, as wide as the smaller vocabulary."""
        how = self.contrast
        said, low_a = self._amateur(now, past)
        width = min(b.shape[-1], said.shape[-1])
        temperature = how.amateur_temperature if how.mode == "cd" else 1.0
        a = (said / temperature).log_softmax(-1)[..., :width]
        told = None
        if self.instruction:
            told = self._told(now, past, b.shape[1]).log_softmax(-1)[..., :width]
        cut = b[..., :width]
        scores = icd_scores(cut, a, keep=how.keep, strength=how.strength, relu=how.relu)
        if how.mode != "lol":
            return scores
        ours = theirs = None
        if low:
            exits_b, exits_a = torch.stack(low), torch.stack(low_a)
            if len(low) > 1:
                choice = farthest_layer(b, exits_b, compat=how.dola_compat)
            else:
                choice = torch.zeros(b.shape[:-1], dtype=torch.long, device=b.device)
            ours, theirs = at_layer(exits_b, choice)[..., :width], at_layer(exits_a, choice)[..., :width]
        return lol_scores(
            scores,
            ours,
            theirs,
            told,
            cut,
            omega=how.omega,
            gamma=how.gamma if self.instruction else 0.0,
            relu=how.relu,
        )

    def _amateur(self, now: Pass, past: Any) -> tuple[Tensor, list[Tensor]]:
        """The amateur's logits in float32, and its log-probabilities at the lower layers."""
        sites = map(exit_site, self.exits if self.contrast.mode == "lol" else ())
        given = {"input_ids": now.ids, **now.given}
        with torch.no_grad(), recorded(self.amateur, sites) as states:
            theirs = self._run(self.amateur, self.amateur, given, now, past, "cache of the amateur", 0)
            low = [
                self._exit(self.amateur, states, layer, now).float().log_softmax(-1) for layer in self.exits if states
            ]
        return theirs.float().to(now.ids.device), [each.to(now.ids.device) for each in low]

    def _told(self, now: Pass, past: Any, width: int) -> Tensor:
        """The base's logits with the instruction before the prompt, in float32: the positions of this pass."""
        given = {**now.given, "input_ids": now.ids}
        given = instructed(given, now.start, self.instruction, self.bos)
        length = now.start + now.ids.shape[1] + len(self.instruction)
        if self._limit() and length > self._limit():
            raise ModelError(
                f"{length} tokens with the instruction", f"at most {self._limit()} (the model's context)",
                "shorten the rows or the instruction, or set gamma=0",
            )  # fmt: skip
        keep = given.pop("logits_to_keep", 0)
        if isinstance(keep, int):
            given["logits_to_keep"] = keep
        # past the base's hooks: they belong to its own pass
        found = self._run(self.base, self.base.forward, given, now, past, "cache of the told", len(self.instruction))
        if not isinstance(keep, int):
            return found[:, -now.ids.shape[1] :][:, keep].float()
        return found[:, -width:].float()

    @staticmethod
    def _run(model: Any, call: Any, given: dict[str, Any], now: Pass, past: Any, name: str, more: int) -> Tensor:
        """One pass of another model with its own cache; `more` tokens are in that cache beyond those of the base's."""
        second = None
        if past is not None:
            second = now.asked.memory.setdefault(name, DynamicCache(config=model.config))
        accepts = inspect.signature(getattr(model, "get_base_model", lambda: model)().forward).parameters
        inputs = {key: given[key] for key in PASSED if given.get(key) is not None and key in accepts}
        output = call(**inputs, past_key_values=second, use_cache=second is not None)
        if past is not None and second is not None and second.get_seq_length() != past.get_seq_length() + more:
            raise ModelError(
                f"a cache of {past.get_seq_length()} tokens whose beginning only the base has seen",
                "a cache that this guard began", "start from an empty cache",
            )  # fmt: skip
        logits: Tensor = output.logits
        return logits

    @staticmethod
    def _exit(model: Any, states: dict[Site, Tensor], layer: int, now: Pass) -> Tensor:
        """Logits [B, T', V] of an early exit at the positions of the output."""
        state = states[exit_site(layer)]
        keep = now.given.get("logits_to_keep", 0)
        return exit_logits(model, state[:, -keep:] if isinstance(keep, int) else state[:, keep])


def exit_layers(contrast: Contrast, depth: int) -> tuple[int, ...]:
    """The layers that a mode reads: DoLa's candidates, LOL's one layer or its candidates, none for the others.

    Raises:
        ConfigError: no such layer.
    """
    if contrast.mode == "dola" or (contrast.mode == "lol" and contrast.layer == "dynamic" and contrast.omega):
        return candidate_layers(contrast.candidates, depth)
    if contrast.mode != "lol" or not contrast.omega:
        return ()
    return candidate_layers(str(depth // 2 if contrast.layer is None else contrast.layer), depth)


__all__ = ["Contrast", "ContrastiveModel", "exit_layers"]
