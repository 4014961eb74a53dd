"""Stories put before a model whole and changed: what it answers, whether that is the same as before, and how far it moved.

The acting half of the suite `faithfulness` (arXiv 2212.10696): stories come from the user or are made of a request's own facts,
each is asked under every intervention of `data.interventions`, and what is kept are flags by item, never a text.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from pydantic import Field, field_validator
from torch import Tensor

from efface.audit.metrics.text import contains_answer, is_refusal, normalise, token_f1
from efface.data.context_ladder import ContextForm, ladder, statement
from efface.data.interventions import DELETIONS, KINDS, UNKNOWN, Story, intervene, read_story
from efface.data.request import Request
from efface.errors import InputError
from efface.run.settings import Settings
from efface.subjects.answers import answer_logits
from efface.subjects.causal_lm import CausalLM

OPPOSITE = {"yes": "no", "no": "yes"}


class FaithfulnessConfig(Settings):
    """Whose stories are asked about, and how."""

    stories: str | None = Field(
        None, description="JSONL: id, story, question, answer, rationale (or offsets), answer_aliases, history, negated, "
        "swapped; default: stories made of the request's own facts"
    )  # fmt: skip
    statement: str = Field("{question} {answer}", description="without stories: a fact in words")
    distractors: int = Field(2, ge=1, description="without stories: other facts beside the one that answers")
    template: str = Field(
        "Answer from the story only; say unknown where it does not tell.\n\n{story}\n\n{history}{question}",
        description="the prompt; fields {story}, {history}, {question}",
    )
    history: int = Field(2, ge=0, description="earlier turns that are shown (paper: 2)")
    rows: int = Field(200, ge=1, description="most stories of a set, evenly spaced")
    match: Literal["exact", "contains"] = Field(
        "contains", description="an answer is right if it is a right answer, or if it contains one as whole words"
    )
    max_new_tokens: int = Field(32, ge=1, description="limit of an answer")
    batch_size: int = Field(32, ge=1, description="prompts in a forward pass")
    seed: int = Field(0, ge=0, description="of the stories' other facts and their order")

    @field_validator("template")
    @classmethod
    def _fields(cls, value: str) -> str:
        if missing := [field for field in ("{story}", "{question}") if field not in value]:
            raise ValueError(f"the template has no {missing[0]}")
        return value


def read_stories(path: str | Path) -> list[Story]:
    """Stories from a JSONL file.

    Raises:
        InputError: naming the line: not JSON, no rationale in the story, an empty answer, an id twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"stories '{path}' cannot be read", "a JSONL file in UTF-8", "check the path") from error
    found: dict[str, Story] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{place}: not JSON", "one object a line", "mend the line") from error
        story = read_story(row if isinstance(row, dict) else {}, place)
        if story.id in found:
            raise InputError(f"{place}: id {story.id!r} comes twice", "unique ids")
        found[story.id] = story
    if not found:
        raise InputError(f"{path} holds no story", "at least one line")
    return list(found.values())


def stories_of(request: Request, config: FaithfulnessConfig) -> dict[str, list[Story]]:
    """The user's stories, or stories made of forget and retain facts: the fact among others, in random order.

    Raises:
        InputError: as `read_stories`; a forget row without a question.
    """
    if config.stories is not None:
        return {"stories": evenly(read_stories(config.stories), config.rows)}
    form = ContextForm(statement=config.statement)
    keep, found = request.evaluation_sets().get("retain"), {}
    sets = {"forget": (request.forget, request.retain), "retain": (keep, None)}
    for name, (rows, others) in sets.items():
        if rows is None:
            continue
        if not all(rows["question"]):
            raise InputError(
                f"a {name} row without a question",
                "questions, or stories of your own",
                "give faithfulness.stories=FILE",
            )
        chosen = rows.select(evenly(range(len(rows)), config.rows))
        told = ladder(chosen, [] if others is None else [others], form, k=config.distractors, seed=config.seed)
        found[name] = [_made(row, told.facts[row["id"]], statement(row, form)) for row in chosen]
    return found


def evenly(rows: Sequence[Any], most: int) -> list[Any]:
    """At most `most`, evenly spaced."""
    if len(rows) <= most:
        return list(rows)
    return [rows[i] for i in sorted({round(i * (len(rows) - 1) / max(1, most - 1)) for i in range(most)})]


def _made(row: Mapping[str, Any], facts: Sequence[str], own: str) -> Story:
    """A story of statements; the rationale is the row's own."""
    place = facts.index(own)
    start = sum(len(text) + 1 for text in facts[:place])
    return Story(
        id=row["id"], story=" ".join(facts), question=row["question"], answer=row["answer"],
        answer_aliases=tuple(row.get("answer_aliases") or ()), rationale_start=start, rationale_end=start + len(own),
    )  # fmt: skip


def prompt_of(story: Story, text: str, config: FaithfulnessConfig) -> str:
    """The question about a text, with the last turns before it."""
    turns = story.history[len(story.history) - min(config.history, len(story.history)) :]
    past = "".join(f"{question}\n{answer}\n" for question, answer in turns)
    parts = {"{story}": text, "{history}": past, "{question}": story.question}
    return re.sub(r"\{(story|history|question)\}", lambda match: parts[match.group()], config.template)


# -- answers ------------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Lower case, without punctuation and articles, as SQuAD and CoQA compare; articles stay where nothing else is there."""
    words = normalise(text).split()
    return " ".join([word for word in words if word not in {"a", "an", "the"}] or words)


def right(said: str, answers: Sequence[str], match: str) -> bool:
    """Whether an answer is one of the right ones, or contains one."""
    if any(plain(said) == plain(answer) for answer in answers):
        return True
    return match == "contains" and contains_answer(said, answers)


def says_unknown(said: str, match: str) -> bool:
    """Whether the model says that the story does not tell."""
    return right(said, [UNKNOWN], match) or is_refusal(said)


def multi_f1(said: str, answers: Sequence[str]) -> float:
    """CoQA's F1: with n > 1 references the mean over leaving each out of the best over the others; else the F1."""
    scores = [token_f1(plain(said), plain(answer)) for answer in answers]
    if len(scores) == 1:
        return scores[0]
    return float(np.mean([max(scores[:i] + scores[i + 1 :]) for i in range(len(scores))]))


def first_token(subject: CausalLM, prompts: Sequence[str], answers: Sequence[str], batch_size: int) -> Tensor:
    """[n, V] log-probabilities of the first answer token, float32 on the CPU."""
    rows = [subject.encode(q, a, place=f"story {i}") for i, (q, a) in enumerate(zip(prompts, answers, strict=True))]
    found = []
    with subject.evaluating() as model, torch.no_grad():
        for start in range(0, len(rows), batch_size):
            answer = answer_logits(model, subject.batch(rows[start : start + batch_size]))
            first = answer.mask.int().argmax(1)
            found.append(answer.logits[torch.arange(len(first)), first].log_softmax(-1).cpu())
    return torch.cat(found)


def answer_kl(before: Tensor, after: Tensor) -> list[float]:
    """[n] KL(before || after) in nats of two [n, V] log-distributions; log-probabilities below -100 count as -100."""
    p = before.exp()
    return [float(x) for x in (p * (before.clamp_min(-100) - after.clamp_min(-100))).sum(-1)]


def ask_stories(subject: CausalLM, request: Request, config: FaithfulnessConfig, cost: Any) -> dict[str, Any]:
    """`ask` about the user's stories or those made of the request."""
    return ask(subject, stories_of(request, config), config, cost)


def ask(
    subject: CausalLM, told: Mapping[str, Sequence[Story]], config: FaithfulnessConfig, cost: Any
) -> dict[str, Any]:
    """Ask every story under every intervention; what is stored are flags by item, no text.

    Args:
        told: stories by set.

    Returns:
        set -> kind -> lists over the items that the intervention applies to: `items` (index of the story), `right`, `same`,
        `unknown`, `yes_no`, `flipped`, `supported`, `f1`, for deletions `kl`; and `skipped`, reason -> count.
    """
    found: dict[str, Any] = {}
    for name, stories in told.items():
        made: dict[str, Any] = {}
        first: dict[int, str] = {}
        before: Tensor | None = None
        for kind in KINDS:
            changed = [intervene(story, kind) for story in stories]
            items = [i for i, one in enumerate(changed) if one.text is not None]
            skipped = Counter(one.reason for one in changed if one.text is None)
            entry: dict[str, Any] = {"items": items, "skipped": dict(sorted(skipped.items()))}
            made[kind] = entry
            if not items:
                continue
            prompts = [prompt_of(stories[i], str(changed[i].text), config) for i in items]
            said = _answers(subject, prompts, config, f"{name}, {kind}")
            if kind == "OS":
                first = dict(enumerate(said))
            answers = [stories[i].answers for i in items]
            entry |= {
                "right": [right(text, own, config.match) for text, own in zip(said, answers, strict=True)],
                "unknown": [says_unknown(text, config.match) for text in said],
                "yes_no": [stories[i].yes_no for i in items], "supported": [changed[i].supported for i in items],
                "f1": [multi_f1(text, own) for text, own in zip(said, answers, strict=True)],
                "same": [
                    plain(text) == plain(first[i]) or (right(text, own, config.match) and right(first[i], own, config.match))
                    for i, text, own in zip(items, said, answers, strict=True)
                ],
                "flipped": [
                    plain(text) == OPPOSITE.get(plain(stories[i].answer), "") for i, text in zip(items, said, strict=True)
                ],
            }  # fmt: skip
            if kind in ("OS", *DELETIONS):
                now = first_token(subject, prompts, [stories[i].answer for i in items], config.batch_size)
                before = now if kind == "OS" else before
                assert before is not None
                entry["kl"] = answer_kl(before[items], now)
            cost.items += len(prompts)
        found[name] = made
    return found


def _answers(subject: CausalLM, prompts: Sequence[str], config: FaithfulnessConfig, label: str) -> list[str]:
    rows = subject.encode_prompts(Dataset.from_dict({"question": list(prompts)}), name=label)
    made = subject.generate_all(rows, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size, label=label)
    return [subject.decode(tokens) for tokens in made]


__all__ = [
    "FaithfulnessConfig", "answer_kl", "ask", "ask_stories", "multi_f1", "plain", "prompt_of", "read_stories", "right",
    "stories_of",
]  # fmt: skip
