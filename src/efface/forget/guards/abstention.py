"""Abstaining: what a guard that refuses to answer gives instead, in generation and in score tables alike.

From a position on, the next token is forced to be the refusal's, one after another, and then the end token. The position
is all that counts, not what stands before it, so a scored answer meets the distribution that a generated one would.
Every other token gets the same small probability: nothing of the model's own ranking shows through, and a score table
stays finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from efface.errors import ModelError
from efface.subjects.causal_lm import CausalLM
from efface.subjects.guarded import Asked, Pass

FLOOR = 30.0
"""Nats between the forced token and each of the others: a wrong token has log-probability -30."""

NEVER = 1 << 40
"""The position from which a row that is answered would be refused."""


@dataclass(frozen=True)
class Abstention:
    """A fixed refusal as the whole answer.

    Attributes:
        tokens: [R] of the refusal, the end token last.
    """

    tokens: Tensor

    @classmethod
    def of(cls, subject: CausalLM, text: str) -> Abstention:
        """The refusal in the subject's tokens, as it would stand behind a prompt.

        Raises:
            ModelError: the tokenizer cannot write it, or the model has no end token.
        """
        stop = subject.stop_ids()
        if not stop:
            raise ModelError(
                "a model without an end token", "one, to end a refusal with", "set the tokenizer's eos_token"
            )
        row = subject.encode("?", text, place="the refusal")
        ids = [token for token in row.ids[row.n_prompt :] if token not in stop]
        unknown = getattr(subject.tokenizer, "unk_token_id", None)
        if not ids or (unknown is not None and unknown in ids):
            raise ModelError(
                f"the refusal '{text}' holds words that this tokenizer does not know", "a refusal in its words",
                "give another one with refusal=...",
            )  # fmt: skip
        own = subject.tokenizer.eos_token_id
        return cls(torch.tensor([*ids, stop[0] if own is None else int(own)]))

    def forced(self, logits: Tensor, steps: Tensor) -> Tensor:
        """Logits with the refusal's token at each step forced.

        Args:
            logits: [B, K, V].
            steps: [B, K] which token of the answer is predicted, 0 the first; where negative, nothing is changed.
        """
        refusing = steps >= 0
        if not bool(refusing.any()):
            return logits
        wanted = self.tokens.to(logits.device)[steps.clamp(0, len(self.tokens) - 1)]  # the end token goes on
        made = torch.full_like(logits, -FLOOR).scatter_(-1, wanted.unsqueeze(-1), 0.0)
        return torch.where(refusing.unsqueeze(-1), made, logits)

    def correct(self, now: Pass, output: Any, since: Tensor) -> Any:
        """The base's output with the refusal in the rows that get one.

        Args:
            since: [B] or [B'] position whose next token is the refusal's first; `NEVER` where the row is answered.
        """
        since = now.asked.rows(since, len(now.ids)).to(output.logits.device)
        output.logits = self.forced(output.logits, kept_positions(now, output.logits) - since[:, None])
        return output


def prompt_ends(asked: Asked) -> Tensor:
    """[B] position of each prompt's last token; padding on either side does not count."""
    width = asked.prompt.shape[1]
    return width - 1 - asked.prompt.flip(1).int().argmax(1)


def since_end(asked: Asked, fires: Tensor) -> Tensor:
    """[B] for `Abstention.correct`: the end of the prompt where the guard fires, `NEVER` elsewhere.

    Args:
        fires: [B] bool.
    """
    ends = prompt_ends(asked)
    return torch.where(fires.to(ends.device), ends, torch.full_like(ends, NEVER))


def kept_positions(now: Pass, logits: Tensor) -> Tensor:
    """[K] positions that the K columns of a pass's logits belong to."""
    positions = torch.arange(now.start, now.start + now.ids.shape[1], device=logits.device)
    keep = now.given.get("logits_to_keep", 0)
    return positions[keep.to(logits.device)] if isinstance(keep, Tensor) else positions[-logits.shape[1] :]


__all__ = ["FLOOR", "NEVER", "Abstention", "kept_positions", "prompt_ends", "since_end"]
