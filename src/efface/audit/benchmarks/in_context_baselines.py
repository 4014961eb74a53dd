"""What in-context unlearning is compared with: the untuned model with the same tags, with demonstrations, with flipped labels.

- zero-shot: the model before the edit on the same tagged prompts (`in_context.measure` on it).
- few-shot: two matched and two unmatched demonstrations before the tagged query (arXiv 2410.00382; its number is unpublished).
- ICUL (Pawelczyk et al., arXiv 2310.07579): the fact to forget stands in the context with a wrong label, other facts with
  their right ones, then comes the query, untagged.
- gradient ascent: the method of that name, asked without tags (`plain_outcomes`). The official code's own baseline flips the
  gradient after the optimiser step and so does nothing; the method here negates the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from efface.audit.benchmarks.in_context import KINDS, MAX_NEW_TOKENS, ask, judged, triples
from efface.data.tagged import Item, TagProtocol
from efface.errors import InputError
from efface.subjects.causal_lm import CausalLM

Turn = tuple[str, str]
"""A question with its answer."""


def prompt_ids(subject: CausalLM, demonstrations: Sequence[Turn], question: str) -> list[int]:
    """Token ids of demonstrations and query: turns of a chat, or whole texts with a blank line between.

    Raises:
        InputError: longer than the model's context.
    """
    form, tokenizer = subject.prompt, subject.tokenizer
    if form.style == "chat":
        turns = [{"role": "system", "content": form.system}] if form.system else []
        for asked, said in demonstrations:
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        text = tokenizer.apply_chat_template(
            [*turns, {"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
    else:
        texts = [form.whole_text(tokenizer, asked, said) for asked, said in demonstrations]
        text = "\n\n".join([*texts, form.prompt_text(tokenizer, question)])
    ids = list(tokenizer(text, add_special_tokens=form.style == "plain")["input_ids"])
    if form.style == "plain" and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    if subject.context and len(ids) >= subject.context:
        raise InputError(
            f"a prompt of {len(ids)} tokens with {len(demonstrations)} demonstrations", f"fewer than {subject.context}",
            "give fewer demonstrations",
        )  # fmt: skip
    return ids


def _answers(subject: CausalLM, prompts: Sequence[list[int]], name: str) -> list[str]:
    made = subject.generate_all(prompts, max_new_tokens=MAX_NEW_TOKENS, label=f"ask {name}")
    return [subject.decode(tokens) for tokens in made]


def few_shot(
    subject: CausalLM, items: Sequence[Item], pool: Sequence[Item], protocol: TagProtocol, *, matched: int = 2,
    unmatched: int = 2, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """Tagged queries after tagged demonstrations of other facts; the record that `in_context.measure` gives for one set.

    Args:
        items: asked.
        pool: where demonstrations come from; an item never demonstrates itself or another fact of its concept.

    Raises:
        InputError: fewer demonstrations in the pool than are asked for.
    """
    samples, lone = triples(items, protocol, seed)
    shown, _ = triples(pool, protocol, seed)
    facts = {item.id: item for item in [*items, *pool]}
    rng = np.random.default_rng(seed)
    prompts: dict[str, list[list[int]]] = {kind: [] for kind in KINDS}
    for sample in samples:
        own = facts[sample["matched"].item]
        others = [s for s in shown if s["matched"].item != own.id and facts[s["matched"].item].concept != own.concept]
        if len(others) < matched + unmatched:
            raise InputError(f"{len(others)} facts to demonstrate with", f"{matched + unmatched} or more", "give more")
        picked = [others[i] for i in rng.choice(len(others), matched + unmatched, replace=False)]
        turns = [(s["matched"].question, s["matched"].answer) for s in picked[:matched]]
        turns += [(s["unmatched"].question, s["unmatched"].answer) for s in picked[matched:]]
        turns = [turns[i] for i in rng.permutation(len(turns))]
        for kind in KINDS:
            prompts[kind].append(prompt_ids(subject, turns, sample[kind].question))
    answers = [facts[sample["matched"].item].answer for sample in samples]
    asked = {
        kind: judged(subject, _answers(subject, prompts[kind], f"few-shot, {kind}"), answers, protocol.target)
        for kind in KINDS
    }
    return {"n": len(samples), "lone": lone, "ids": [s["matched"].item for s in samples], "asked": asked}


def icul(
    subject: CausalLM, items: Sequence[Item], pool: Sequence[Item], target: str, *, correct: int = 4, seed: int = 0
) -> dict[str, Any]:
    """Label flipping in context. `matched`: the flipped fact is asked; `unmatched`: another one is flipped.

    Args:
        correct: facts with their right answers beside the flipped one.

    Raises:
        InputError: too few facts, or only one answer, so that no label can be flipped.
    """
    rng = np.random.default_rng(seed)
    prompts: dict[str, list[list[int]]] = {"matched": [], "unmatched": []}
    for item in items:
        others = [other for other in pool if other.id != item.id and other.concept != item.concept]
        wrong = sorted({other.answer for other in others} - {item.answer})
        if len(others) < correct + 1 or not wrong:
            raise InputError(
                f"{len(others)} other facts with {len(wrong)} other answers", f"{correct + 1} facts or more"
            )
        picked = [others[i] for i in rng.choice(len(others), correct + 1, replace=False)]
        right = [(other.question, other.answer) for other in picked[:correct]]
        last = picked[correct]
        flips = sorted({other.answer for other in others} - {last.answer}) or wrong
        for kind, turn in (
            ("matched", (item.question, wrong[int(rng.integers(len(wrong)))])),
            ("unmatched", (last.question, flips[int(rng.integers(len(flips)))])),
        ):
            prompts[kind].append(prompt_ids(subject, [turn, *right], item.question))
    answers = [item.answer for item in items]
    asked = {
        kind: judged(subject, _answers(subject, rows, f"label flipping, {kind}"), answers, target)
        for kind, rows in prompts.items()
    }
    return {"n": len(items), "ids": [item.id for item in items], "asked": asked}


def plain_outcomes(subject: CausalLM, items: Sequence[Item], target: str) -> dict[str, Any]:
    """Outcomes of untagged questions, for a model that was changed for good (gradient ascent)."""
    texts = ask(subject, [item.question for item in items], name="untagged")
    return {"n": len(items), "ids": [i.id for i in items], "asked": {
        "untagged": judged(subject, texts, [item.answer for item in items], target)
    }}  # fmt: skip


def rates(record: dict[str, Any]) -> dict[str, float]:
    """The published table's columns of a record, and what stands beside them: shares of exact outcomes."""

    def share(kind: str, column: str, value: Any) -> float:
        own = record["asked"].get(kind)
        return float("nan") if own is None else sum(v == value for v in own[column]) / len(own[column])

    return {
        "forget": share("matched", "exact", "forgot"), "retain": share("unmatched", "exact", "correct"),
        "no_tag": share("untagged", "exact", "correct"), "leak": share("matched", "leak", True),
        "over_forget": share("unmatched", "exact", "forgot"),
    }  # fmt: skip
