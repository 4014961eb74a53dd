"""A model that answers forget prompts by a restricted search, and every other prompt as its base does.

Generation: rows whose prompt the gate lets pass get what the base gives to the whole batch with the caller's own settings,
sampled or not; rows whose prompt fires are searched again, and an answer that fails every check is the refusal. Nothing
that was not checked leaves `generate`: a streamer gets a restricted answer when it is finished, and scores are left out.

Scoring: a search over beams has no next-token distribution. What a score table sees behind a prompt that fires is the
model's distribution after the penalties of the one answer so far, renormalised; a banned token has probability `floor`, and
with floor 0 none, so that ratios of probabilities may be 0 / 0, which the metrics refuse. Without any phrase to forbid, the
distribution is the refusal's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers.generation.utils import GenerateDecoderOnlyOutput

from efface.errors import ModelError
from efface.forget.guards.abstention import Abstention, kept_positions, prompt_ends, since_end
from efface.forget.guards.forbidden_phrases import PhraseIndex
from efface.forget.guards.prompt_gate import PromptGate
from efface.forget.guards.restricted_decoding import Forbidden, Restrictor, hypotheses
from efface.subjects.guarded import Asked, GuardedModel, Pass, prompt_texts

BY_ROW = ("attention_mask", "position_ids", "token_type_ids")
"""Arguments of `generate` with a row for each prompt."""


class PhraseGuard(GuardedModel):
    """See the module.

    Args:
        base: a causal LM.
        gate: bound to the base; says which prompts aim at what is to be forgotten.
        index: prompt -> phrases.
        restrictor: the penalties.
        refusal: the answer where nothing else is left.
        floor: probability of a banned token in a score table.
        seal: for `GuardedModel`.
    """

    def __init__(
        self, base: Any, gate: PromptGate, index: PhraseIndex, restrictor: Restrictor, refusal: Abstention, floor: float,
        seal: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(base, seal)
        self.gate, self.index, self.restrictor, self.refusal, self.floor = gate, index, restrictor, refusal, floor

    def begin(self, asked: Asked) -> None:
        """Which prompts fire, and what their answers must not hold; None where nothing is known to forbid."""
        texts = prompt_texts(self.restrictor.tokenizer, asked)
        fires = [bool(fire) for fire in self.gate.fires(texts)]
        phrases = {text: self.index.forbidden(text) for text, fire in zip(texts, fires, strict=True) if fire}
        ready = {text: self.restrictor.forbidden(found) if len(found) else None for text, found in phrases.items()}
        asked.memory["fires"] = fires
        asked.memory["sets"] = [ready.get(text) for text in texts]
        asked.memory["prompts"] = [row[keep].tolist() for row, keep in zip(asked.ids, asked.prompt, strict=True)]

    # -- scoring ------------------------------------------------------------------------------------------------------

    def correct(self, now: Pass, output: Any) -> Any:
        """The penalised distribution behind prompts that fire; `generate` has a search of its own."""
        asked = now.asked
        if asked.generating or not any(asked.memory["fires"]):
            return output
        seen = self._seen(now)
        places = self._places(now, output.logits)
        if places:
            output.logits = self._penalised(output.logits, places, seen, now)
        empty = [fire and own is None for fire, own in zip(asked.memory["fires"], asked.memory["sets"], strict=True)]
        output = self.refusal.correct(now, output, since_end(asked, torch.tensor(empty)))
        if getattr(output, "loss", None) is not None:  # the base took it from its own logits
            output.loss = self.base.loss_function(
                logits=output.logits, labels=now.given["labels"], vocab_size=output.logits.shape[-1]
            )
        return output

    def _seen(self, now: Pass) -> Tensor:
        """[B, start + T'] all tokens of the request up to this pass.

        Raises:
            ModelError: other rows than those that the request began with.
        """
        if len(now.ids) != len(now.asked.ids):
            raise ModelError(
                f"{len(now.ids)} rows in a request of {len(now.asked.ids)} prompts", "the same rows in every pass",
                "let generate make beams and samples",
            )  # fmt: skip
        former = now.asked.memory.get("seen", now.ids[:, :0])
        now.asked.memory["seen"] = torch.cat([former[:, : now.start].to(now.ids.device), now.ids], dim=1)
        seen: Tensor = now.asked.memory["seen"]
        return seen

    def _places(self, now: Pass, logits: Tensor) -> list[tuple[int, int, int, int]]:
        """(row, column of the logits, position, end of the prompt) of every prediction of an answer's token."""
        ends, mask = prompt_ends(now.asked).tolist(), now.asked.mask.tolist()
        positions = kept_positions(now, logits).tolist()
        return [
            (i, column, position, ends[i])
            for i, own in enumerate(now.asked.memory["sets"]) if own is not None
            for column, position in enumerate(positions)
            if position >= ends[i] and (position >= len(mask[i]) or mask[i][position])
        ]  # fmt: skip

    def _penalised(self, logits: Tensor, places: list[tuple[int, int, int, int]], seen: Tensor, now: Pass) -> Tensor:
        sets: list[Forbidden] = [now.asked.memory["sets"][i] for i, *_ in places]
        said = [seen[i, end + 1 : position + 1].tolist() for i, _, position, end in places]
        before = [now.asked.memory["prompts"][i] for i, *_ in places]
        rows = torch.tensor([place[0] for place in places], device=logits.device)
        columns = torch.tensor([place[1] for place in places], device=logits.device)
        scores = self.restrictor.restrict(logits[rows, columns].float().log_softmax(-1), said, before, sets)
        dead = torch.isneginf(scores).all(-1)
        for stop in self.restrictor.stop:
            scores[dead, stop] = 0.0
        made = scores.log_softmax(-1)
        if self.floor:
            made = made.clamp(min=math.log(self.floor))
        logits = logits.clone()
        logits[rows, columns] = made.to(logits.dtype)
        return logits

    # -- generation ---------------------------------------------------------------------------------------------------

    def _generate(self, asked: Asked, ids: Tensor, more: dict[str, Any]) -> Any:
        fires: list[bool] = asked.memory["fires"]
        if not any(fires):
            return self.base.generate(ids, **more)
        own = more.get("generation_config") or self.base.generation_config
        each = int(more.get("num_return_sequences") or own.num_return_sequences or 1)
        width = ids.shape[1]
        plain = None
        if not all(fires):  # the whole batch, so that the others get their own bits and their own draws
            passed = {key: value for key, value in more.items() if key != "streamer"}
            plain = self.base.generate(ids, **{**passed, "return_dict_in_generate": False})[:, width:].tolist()
        answers = self._answers(asked, ids, more, each)
        rows = [
            answers[i][k] if fires[i] else plain[i * each + k]  # type: ignore[index]
            for i in range(len(ids)) for k in range(each)
        ]  # fmt: skip
        out = torch.full(
            (len(rows), width + max(map(len, rows))), self._fill(more, own), dtype=ids.dtype, device=ids.device
        )
        out[:, :width] = ids.repeat_interleave(each, dim=0)
        for row, answer in enumerate(rows):
            out[row, width : width + len(answer)] = torch.tensor(answer, dtype=ids.dtype)
        if more.get("streamer") is not None:
            more["streamer"].put(ids.cpu())
            for token in rows[0]:
                more["streamer"].put(torch.tensor([token]))
            more["streamer"].end()
        wants = more.get("return_dict_in_generate", getattr(own, "return_dict_in_generate", False))
        return GenerateDecoderOnlyOutput(sequences=out) if wants else out

    def _answers(self, asked: Asked, ids: Tensor, more: dict[str, Any], each: int) -> dict[int, list[list[int]]]:
        """Row -> its answers, `each` of them, the refusal where there are not enough."""
        own = more.get("generation_config") or self.base.generation_config
        most = more.get("max_new_tokens") or own.max_new_tokens
        if not most:
            longest = more.get("max_length") or own.max_length
            most = longest - ids.shape[1] if longest and longest > ids.shape[1] else None
        refusal = self.refusal.tokens.tolist()[:most]
        fired = [i for i, fire in enumerate(asked.memory["fires"]) if fire]
        sought = [i for i in fired if asked.memory["sets"][i] is not None]
        found: dict[int, list[list[int]]] = {i: [] for i in fired}
        if sought:
            part = {key: value[sought] if key in BY_ROW and value is not None else value for key, value in more.items()}
            sets = [asked.memory["sets"][i] for i in sought]
            prompts = [asked.memory["prompts"][i] for i in sought]
            answers = hypotheses(self.base, ids[sought], part, self.restrictor, sets, prompts)
            found.update(zip(sought, answers, strict=True))
        return {i: [*rows, *[refusal] * (each - len(rows))] for i, rows in found.items()}

    def _fill(self, more: dict[str, Any], own: Any) -> int:
        """The id that fills up shorter answers, as the base would choose it."""
        for value in (more.get("pad_token_id"), own.pad_token_id, min(self.restrictor.stop, default=0)):
            if value is not None:
                return int(value)
        return 0


__all__ = ["PhraseGuard"]
