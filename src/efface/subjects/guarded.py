"""A model with the face of its base, on which something acts at inference while no weight changes.

A guard acts through hooks on the base, so `forward`, `generate` (greedy, sampling, beams, cached) and the pipelines of
transformers all meet it, and what looks inside the base meets it too. What a guard knows about a request (its decision, a
second cache) is kept with the request: made from the prompts when `generate` begins or when a first pass meets an empty
cache, carried by the cache from then on, and never global.

Which positions are the prompt is said, not guessed: `generate` knows the prompts; whoever scores answers gives
`prompt_lengths`; a bare forward pass is all prompt.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from efface.errors import ModelError

STATE = "efface_guard"
"""The attribute of the base's cache that carries a request from one pass to the next."""


@dataclass
class Asked:
    """One request in progress: B prompts.

    Attributes:
        ids: [B, T] token ids of the prompts (of everything given, in a bare forward pass).
        mask: [B, T] 1 where a token is no padding.
        prompt: [B, T] bool, where the prompt stands; padding excluded.
        generating: `generate` runs it, so tokens beyond T are answers.
        memory: whatever the guard keeps about it.
    """

    ids: Tensor
    mask: Tensor
    prompt: Tensor
    generating: bool = False
    memory: dict[str, Any] = field(default_factory=dict)

    def rows(self, value: Tensor, batch: int) -> Tensor:
        """[B, ...] of the prompts -> [batch, ...] of the rows that run: beams and samples of a prompt stand together."""
        return value if len(value) == batch else value.repeat_interleave(batch // len(value), dim=0)

    def prompt_at(self, start: int, width: int, batch: int) -> Tensor:
        """[batch, width] bool: which positions of a pass that begins at `start` are the prompt's."""
        inside = self.prompt[:, start : start + width]
        return self.rows(nn.functional.pad(inside, (0, width - inside.shape[1])), batch)


@dataclass(frozen=True)
class Pass:
    """One forward pass of the base.

    Attributes:
        asked: the request that it belongs to.
        ids: [B', T'] token ids of this pass.
        start: position of its first token: what the cache holds already.
        given: the base's keyword arguments.
    """

    asked: Asked
    ids: Tensor
    start: int
    given: dict[str, Any]

    @property
    def prompt(self) -> Tensor:
        """[B', T'] bool: which positions of this pass are the prompt's."""
        return self.asked.prompt_at(self.start, self.ids.shape[1], len(self.ids))


class GuardedModel(nn.Module):
    """The base class of guards.

    A guard gives `begin` (what to know about a request), and either or both of `acting` (a context in which the base runs,
    with hooks inside) and `correct` (the base's output -> the output).

    Args:
        base: a causal LM.
        seal: the digest of what guards it, so that the digest of a guarded model tells how it is guarded.
    """

    def __init__(self, base: Any, seal: str | None = None) -> None:
        super().__init__()
        self.base = base
        if seal is not None:
            raw = bytes.fromhex(seal.removeprefix("sha256:"))
            self.register_buffer("seal", torch.tensor(list(raw), dtype=torch.uint8))
        self._asked: Asked | None = None
        self._inside: list[contextlib.ExitStack] = []

    # -- what a guard gives -----------------------------------------------------------------------------------------

    def begin(self, asked: Asked) -> None:
        """Look at the prompts once and fill `asked.memory`."""

    @contextlib.contextmanager
    def acting(self, now: Pass) -> Iterator[None]:
        """Runs round one pass of the base."""
        yield

    @abstractmethod
    def correct(self, now: Pass, output: Any) -> Any:
        """The base's output after the guard; `output` may be changed and returned."""

    # -- the face of the base ---------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """The guard's own, else the base's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base":
                raise
            return getattr(super().__getattr__("base"), name)

    def get_base_model(self) -> Any:
        """The bare model, under adapters too."""
        return getattr(self.base, "get_base_model", lambda: self.base)()

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, past_key_values: Any = None,
        use_cache: bool | None = None, logits_to_keep: int | Tensor = 0, prompt_lengths: Tensor | None = None, **more: Any,
    ) -> Any:  # fmt: skip
        """The base's output under the guard.

        Args:
            prompt_lengths: [B] tokens of each prompt, where the rows hold answers too (padded right). Default: all is prompt.
        """
        if input_ids is None:
            raise ModelError("a guarded model without input_ids", "token ids", "the guard reads the prompt")
        carried = getattr(past_key_values, STATE, None)
        asked = carried or _asked(input_ids, attention_mask, prompt_lengths)
        if carried is None and past_key_values is not None and past_key_values.get_seq_length():
            raise ModelError(
                f"a cache of {past_key_values.get_seq_length()} tokens whose beginning only the base has seen",
                "a cache that this guard began", "start from an empty cache",
            )  # fmt: skip
        with self._guarding(asked, begun=carried is not None):
            return self.base(
                input_ids=input_ids, attention_mask=attention_mask, past_key_values=past_key_values, use_cache=use_cache,
                logits_to_keep=logits_to_keep, **more,
            )  # fmt: skip

    def generate(self, inputs: Tensor | None = None, **more: Any) -> Any:
        """As the base's; the guard looks at the prompts first."""
        ids = more.pop("input_ids", inputs)
        if ids is None:
            raise ModelError("a guarded model without input_ids", "token ids", "the guard reads the prompt")
        asked = _asked(ids, more.get("attention_mask"), None)
        asked.generating = True
        with self._guarding(asked, begun=False):
            return self._generate(asked, ids, more)

    def _generate(self, asked: Asked, ids: Tensor, more: dict[str, Any]) -> Any:
        """The base's generation, inside the guard."""
        return self.base.generate(ids, **more)

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        """Refused: a guarded model is no checkpoint.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            "a guarded model cannot be saved as one checkpoint", "the model without its guard",
            "save the edit, and apply it again after loading",
        )  # fmt: skip

    # -- hooks ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _guarding(self, asked: Asked, *, begun: bool) -> Iterator[None]:
        """Hooks on the base for one request; an outer request comes back afterwards."""
        outer = self._asked
        if not begun:
            with torch.no_grad():
                self.begin(asked)  # before the hooks: it may run the bare model
        self._asked = asked
        handles = [
            self.base.register_forward_pre_hook(self._before, with_kwargs=True),
            self.base.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._asked = outer
            while self._inside:
                self._inside.pop().close()

    def _now(self, args: tuple[Any, ...], given: dict[str, Any]) -> Pass:
        assert self._asked is not None
        ids = args[0] if args else given["input_ids"]
        past = given.get("past_key_values")
        return Pass(self._asked, ids, int(past.get_seq_length()) if past is not None else 0, given)

    def _before(self, _: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        now = self._now(args, given)
        stack = contextlib.ExitStack()
        stack.enter_context(self.acting(now))
        stack.pass_ = now  # type: ignore[attr-defined]
        self._inside.append(stack)

    def _after(self, _: Any, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> Any:
        stack = self._inside.pop()
        stack.close()
        if output is None:  # the pass failed
            return None
        past = getattr(output, "past_key_values", None)
        if past is not None:
            setattr(past, STATE, self._asked)
        return self.correct(stack.pass_, output)  # type: ignore[attr-defined]


def _asked(ids: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Asked:
    mask = torch.ones_like(ids) if mask is None else mask[:, -ids.shape[1] :]
    prompt = mask.bool()
    if lengths is not None:
        prompt = prompt & (torch.arange(ids.shape[1], device=ids.device) < lengths.to(ids.device)[:, None])
    return Asked(ids, mask, prompt)


def prompt_texts(tokenizer: Any, asked: Asked) -> list[str]:
    """The text of each prompt, special tokens left out."""
    return [
        str(tokenizer.decode(row[keep].tolist(), skip_special_tokens=True)).strip()
        for row, keep in zip(asked.ids, asked.prompt, strict=True)
    ]


def is_guarded(subject: Any) -> bool:
    """Whether something acts on the subject's model at inference only."""
    return isinstance(getattr(subject, "model", None), GuardedModel)


@contextlib.contextmanager
def bare(subject: Any) -> Iterator[Any]:
    """The subject with its weights alone: guards are off inside the block; nothing changes for a model without one."""
    if not is_guarded(subject):
        yield subject
        return
    guarded = subject.model
    subject.model = guarded.base
    subject.changed()
    try:
        yield subject
    finally:
        subject.model = guarded
        subject.changed()


__all__ = ["Asked", "GuardedModel", "Pass", "bare", "is_guarded", "prompt_texts"]
