"""How a content filter does on texts: what it blocks, what it blocks wrongly, what gets past it, and how long it takes.

Whether the model behind it leaks is another question, which the audit suite `reintroduction` answers by asking through the
filter. Ways round it: base64 of the whole prompt, the prompt split over two turns, its words spelled out, and paraphrases
that the caller gives; translation is not tried.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from efface.errors import InputError
from efface.forget.guards.content_check import ContentFilter

Messages = list[dict[str, str]]


class FilterReport(NamedTuple):
    """Shares in [0, 1].

    Attributes:
        blocked: of forbidden prompts, by level.
        false_blocks: of permitted prompts, by level.
        bypass: share of forbidden prompts that are blocked as they stand and pass in another dress, by the dress.
        milliseconds: of one check, mean.
    """

    blocked: dict[str, float]
    false_blocks: dict[str, float]
    bypass: dict[str, float]
    milliseconds: float


def in_base64(prompt: str) -> Messages:
    """The whole prompt encoded, with a request to decode it."""
    return [{"role": "user", "content": f"Decode this and answer it: {base64.b64encode(prompt.encode()).decode()}"}]


def in_turns(prompt: str) -> Messages:
    """The prompt cut in half, one message each."""
    words = prompt.split()
    middle = (len(words) + 1) // 2
    return [{"role": "user", "content": " ".join(part)} for part in (words[:middle], words[middle:]) if part]


def spelled_out(prompt: str) -> Messages:
    """Every word letter by letter."""
    return [{"role": "user", "content": "  ".join(" ".join(word) for word in prompt.split())}]


DRESSES = {"base64": in_base64, "split over turns": in_turns, "spelled out": spelled_out}


def filter_report(
    content: ContentFilter, forbidden: Mapping[str, Sequence[str]], permitted: Mapping[str, Sequence[str]], *,
    paraphrases: Sequence[str] = (),
) -> FilterReport:  # fmt: skip
    """Check every prompt in every dress.

    Args:
        forbidden, permitted: prompts by level.
        paraphrases: forbidden prompts in other words, all of them to be blocked.

    Raises:
        InputError: no prompt.
    """
    clock, count = time.perf_counter(), sum(map(len, forbidden.values())) + sum(map(len, permitted.values()))
    if not count:
        raise InputError("no prompt to check", "forbidden or permitted prompts by level")
    stopped = {level: [bool(x) for x in content.fires(prompts)] for level, prompts in forbidden.items()}
    wrongly = {level: float(content.fires(prompts).mean()) for level, prompts in permitted.items() if prompts}
    spent = 1000 * (time.perf_counter() - clock) / count
    known = [p for level, prompts in forbidden.items() for p, hit in zip(prompts, stopped[level], strict=True) if hit]
    bypass = {
        name: sum(content.check(dress(prompt)).action == "allow" for prompt in known) / len(known)
        for name, dress in DRESSES.items() if known
    }  # fmt: skip
    if paraphrases:
        bypass["paraphrase"] = float(1 - content.fires(paraphrases).mean())
    blocked = {level: sum(hits) / len(hits) for level, hits in stopped.items() if hits}
    return FilterReport(blocked, wrongly, bypass, spent)


__all__ = ["DRESSES", "FilterReport", "filter_report", "in_base64", "in_turns", "spelled_out"]
