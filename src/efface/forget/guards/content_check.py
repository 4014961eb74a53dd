"""The checks of a content filter: a conversation and a draft in, allow, block or redact out. It knows no model.

What is forbidden stands in a policy of hashed phrases and premise sets (`content_policy`); similarity to forbidden texts and a
prompt classifier may act beside them, each with a conformal threshold. The whole conversation is read as one text, so that
what is split over turns is found, and runs of base64 are read too. After arXiv 2407.00106, which asks for such a filter and
gives none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from efface.data.interventions import sentences
from efface.data.wording import plain_words
from efface.forget.guards.content_policy import Policy, unveiled
from efface.forget.guards.prompt_gate import PromptGate
from efface.subjects.text_index import TextIndex

RULES = ("phrases", "premises", "similarity", "gate")
Stage = Literal["prompt", "tool", "draft", "none"]
REMOVED = "[removed]"


class Verdict(NamedTuple):
    """What the filter decides.

    Attributes:
        action: allow, block, or redact (the draft's phrases are taken out of `text`).
        stage: where it fired.
        rule: which rule.
        score: 1 for an exact rule, else the cosine or probability that went over its threshold.
        item: the policy item, where one was named.
        near: items of whose premises all but one were there: a policy that lacks a set shows here.
        text: the redacted draft.
    """

    action: Literal["allow", "block", "redact"]
    stage: Stage = "none"
    rule: str = ""
    score: float = 0.0
    item: str = ""
    near: tuple[str, ...] = ()
    text: str | None = None


class ContentFilter:
    """The rules put together; knows no model.

    Args:
        policy: phrases and premises.
        rules: which of `RULES` act.
        action: what a phrase in a draft leads to; every other hit blocks.
        index, threshold: of the similarity rule; texts are compared sentence by sentence.
        gate: of the gate rule, on user messages.
        decode: look into base64.
    """

    def __init__(
        self, policy: Policy, *, rules: Sequence[str] = RULES[:2], action: Literal["block", "redact"] = "block",
        index: TextIndex | None = None, threshold: float = 1.0, gate: PromptGate | None = None, decode: bool = True,
    ) -> None:  # fmt: skip
        self.policy, self.rules, self.action, self.index = policy, tuple(rules), action, index
        self.threshold, self.gate, self.decode = threshold, gate, decode

    def check(self, messages: Sequence[Mapping[str, str]], draft: str | None = None) -> Verdict:
        """Look at a conversation, and at the draft of its next answer.

        Args:
            messages: `role` and `content` each; every document counts as a message, tool output has the role `tool`.
            draft: what the model would answer; None looks at the prompt only.
        """
        near: set[int] = set()
        said = "\n".join(message["content"] for message in messages)  # what is split over turns is read as one
        tools = "\n".join(message["content"] for message in messages if message.get("role") == "tool")
        asked = [message["content"] for message in messages if message.get("role") == "user"]
        for stage, text in (("tool", tools), ("prompt", said)):
            if text and (verdict := self._judge(stage, text, near, asked if stage == "prompt" else ())):  # type: ignore[arg-type]
                return verdict
        if draft:
            verdict = self._judge("draft", draft, near, (), before=said)
            if verdict is not None:
                return verdict
        return Verdict("allow", near=tuple(self.policy.ids[item] for item in sorted(near)))

    def _judge(self, stage: Stage, text: str, near: set[int], asked: Sequence[str], before: str = "") -> Verdict | None:
        seen = unveiled(text) if self.decode else text
        reading = self.policy.read(seen)
        joint = self.policy.read(f"{before}\n{seen}") if before else reading
        near.update(joint.near)
        ids = self.policy.ids
        named = tuple(ids[item] for item in joint.near)
        phrases = [hit for hit in reading.found if hit.rule == "phrases"]
        if "phrases" in self.rules and phrases:
            one = ids[phrases[0].item]
            if stage == "draft" and self.action == "redact" and seen == text:
                cut = redacted(text, [(hit.start, hit.end) for hit in phrases])
                return Verdict("redact", stage, "phrases", 1.0, one, named, cut)
            return Verdict("block", stage, "phrases", 1.0, one, named)
        over = [hit for hit in joint.found if hit.rule == "premises" or (before and hit.rule == "phrases")]
        over = [hit for hit in over if hit.rule in self.rules]
        if over:
            return Verdict("block", stage, over[0].rule, 1.0, ids[over[0].item], named)
        if "similarity" in self.rules and self.index is not None:
            score = float(nearness(self.index, seen))
            if score > self.threshold:
                return Verdict("block", stage, "similarity", score, near=named)
        if "gate" in self.rules and self.gate is not None and asked:
            score = float(self.gate.scores(asked).max())
            if score > self.gate.threshold:
                return Verdict("block", stage, "gate", score, near=named)
        return None

    def fires(self, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        """[n] whether each text, as a user's only message, is blocked before the model sees it."""
        return np.array(
            [self.check([{"role": "user", "content": text}]).action == "block" for text in texts], dtype=np.bool_
        )


def nearness(index: TextIndex, text: str) -> float:
    """Largest cosine of a sentence of the text, or of the whole, to a forbidden text."""
    parts = [text, *(text[a:b] for a, b in sentences(text))]
    return float(index.similarities(parts).max())


def redacted(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text with ranges of its plain words replaced; white space is set anew, one space between pieces."""
    pieces = text.split()
    counts: list[tuple[int, int]] = []
    for piece in pieces:
        start = counts[-1][1] if counts else 0
        counts.append((start, start + len(plain_words(piece))))
    gone = [any(a < end and b > start for a, b in spans) for start, end in counts]
    made = [REMOVED if hit else piece for piece, hit in zip(pieces, gone, strict=True)]
    return " ".join(word for i, word in enumerate(made) if word != REMOVED or i == 0 or made[i - 1] != REMOVED)


__all__ = ["REMOVED", "RULES", "ContentFilter", "Verdict", "nearness", "redacted"]
