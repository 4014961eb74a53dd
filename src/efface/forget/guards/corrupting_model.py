"""A model whose input embeddings are corrupted where a prompt is stopped, at the prompt's positions and nowhere else.

The corrupted embeddings are made once for a request and put in by position, so that cached, uncached and chunked passes, beams,
either side of padding and teacher forcing all see the same. Where nothing is stopped no hook is set.

Source: ECO, arXiv 2406.07933, section 3.3. The official code hooks every pass longer than one token; see `eco`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from efface.forget.guards.corruption import Kind, corrupted, request_generator
from efface.forget.guards.prompt_parts import (
    NameTagger,
    Ranges,
    all_but_last,
    covering,
    name_ranges,
    prompt_ids,
    put_back,
)
from efface.run.settings import Settings
from efface.subjects.causal_lm import CausalLM
from efface.subjects.guarded import Asked, GuardedModel, Pass
from efface.subjects.hooks import Site, replaced


class Corruption(Settings):
    """corruption.json: how the embeddings of a prompt are corrupted."""

    kind: Kind = Field(description="see `corruption`")
    n: int = Field(ge=1, description="numbers of each embedding")
    sigma: list[float] = Field(min_length=1, description="one strength, or n of them")
    seed: int = Field(description="of the noise")
    names: list[str] = Field(description="names whose tokens are corrupted; none: all tokens but the last")


@dataclass
class TokenMask:
    """Which tokens of a prompt are corrupted: those of names, where it has any, else all but the last.

    Args:
        tokenizer: the subject's.
        finders: names that are known, and a tagger.
    """

    tokenizer: Any
    finders: tuple[Ranges, ...] = ()

    def __call__(self, ids: list[int]) -> list[bool]:
        """[T] of a prompt's token ids."""
        found = [covering(self.tokenizer, ids, ranges) for ranges in self.finders]
        chosen = [any(marks) for marks in zip(*found, strict=True)]
        return chosen if any(chosen) else all_but_last(len(ids))


def token_mask(subject: CausalLM, names: list[str], tagger: NameTagger | None) -> TokenMask:
    """The mask of names and a tagger; of neither, all tokens but the last."""
    known: tuple[Ranges, ...] = (name_ranges(names),) if names else ()
    return TokenMask(subject.tokenizer, (*known, tagger) if tagger else known)


class EcoModel(GuardedModel):
    """A model whose input embeddings are corrupted where a prompt is stopped.

    Args:
        base, seal: see `GuardedModel`.
        stops: token ids of prompts -> [B] which are stopped.
        mask: token ids of a prompt -> [T] which tokens are corrupted.
        corruption: how; may be replaced between requests (the search does).
    """

    def __init__(
        self, base: Any, seal: str | None, *, stops: Callable[[list[list[int]]], list[bool]],
        mask: Callable[[list[int]], list[bool]], corruption: Corruption,
    ) -> None:  # fmt: skip
        super().__init__(base, seal)
        self.stops, self.mask, self.corruption = stops, mask, corruption

    def begin(self, asked: Asked) -> None:
        """Judge the prompts, and corrupt the embeddings of those that are stopped, once for the whole request."""
        prompts = prompt_ids(asked)
        stopped = self.stops(prompts)
        asked.memory["stopped"] = stopped
        if not any(stopped):
            return
        how = self.corruption
        sigma = torch.tensor(how.sigma if len(how.sigma) > 1 else how.sigma[0])
        values = self.base.get_input_embeddings()(asked.ids).detach()  # [B, T, d]
        where = torch.zeros_like(asked.prompt)
        changed = torch.zeros_like(values)
        for row in (i for i, stop in enumerate(stopped) if stop):
            own = asked.prompt[row].to(values.device)
            chosen = torch.tensor(self.mask(prompts[row]), dtype=torch.bool, device=values.device)
            generator = request_generator(how.seed, prompts[row])
            changed[row, own] = corrupted(values[row, own], chosen, how.kind, how.n, sigma, generator)
            where[row] = put_back(asked.prompt[row], chosen.tolist())
        asked.memory["where"], asked.memory["changed"] = where, changed

    @contextlib.contextmanager
    def acting(self, now: Pass) -> Iterator[None]:
        """The base runs with the corrupted embeddings at the positions of this pass that are a stopped prompt's."""
        memory, batch, width = now.asked.memory, len(now.ids), now.ids.shape[1]
        if "where" not in memory:
            yield
            return
        part = slice(now.start, now.start + width)
        where, changed = (now.asked.rows(memory[name][:, part], batch) for name in ("where", "changed"))
        if not bool(where.any()):
            yield
            return

        def change(value: Tensor) -> Tensor:
            here = where.to(value.device)[..., None]
            known = where.shape[1]  # positions beyond the prompts are answers
            put = torch.where(here, changed.to(value), value[:, :known])
            return torch.cat([put, value[:, known:]], dim=1)

        with replaced(self.base, {Site("embedding"): change}):
            yield

    def correct(self, now: Pass, output: Any) -> Any:
        """The base's output as it is."""
        return output


__all__ = ["Corruption", "EcoModel", "TokenMask", "token_mask"]
