"""General ability as RWKU measures it (arXiv 2406.10890): MMLU, BBH, TruthfulQA, TriviaQA and fluency on its published rows.

MMLU: the likeliest of four letters after worked examples. BBH: 256 tokens with a chain of thought, the text behind "the answer
is" up to a full stop, exact match. TruthfulQA: MC1 and MC2. TriviaQA: 30 tokens, exact match and F1, the best over the
aliases. Fluency: n-gram entropy of 256 tokens on instructions. Departures: worked examples of TriviaQA are efface's own, and
TruthfulQA has none; the opener of an answer stands at the end of the prompt, within the user's turn of a chat template.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from efface.audit.evidence import Evidence, compare
from efface.audit.finding import Estimate, Finding, Threshold
from efface.audit.metrics.fluency import ngram_entropy
from efface.audit.metrics.intervals import bootstrap_mean
from efface.audit.metrics.multiple_choice import mc_rows, multiple_choice
from efface.data.attack_prompts import LETTERS
from efface.data.columns import canonical
from efface.data.rwku import read_config
from efface.errors import RequestError
from efface.run.cost import Cost
from efface.run.digests import digest_value
from efface.run.files import read_json, write_json
from efface.subjects.causal_lm import CausalLM
from efface.train.reference import cache_folder

EXAMPLES = (
    ("In which year did people first walk on the Moon?", "1969"),
    ("Which is the longest river of South America?", "Amazon"),
    ("What metal is liquid at room temperature?", "Mercury"),
    ("How many strings has a violin?", "4"),
    ("Which ocean lies between Africa and Australia?", "Indian Ocean"),
)
"""Worked examples of TriviaQA's form; written for efface."""

ANSWER = re.compile(r"[Tt]he answer is (.*?)\.")
ARTICLES = re.compile(r"\b(a|an|the)\b")


def words_of(text: str) -> list[str]:
    """SQuAD's normalised words: lower case, ASCII marks and articles removed."""
    bare = "".join(char for char in text.lower() if char not in string.punctuation)
    return ARTICLES.sub(" ", bare).split()


def best_match(said: str, answers: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 of an answer, each the best over the right ones."""
    ours = words_of(said)
    exact, f1 = 0.0, 0.0
    for answer in answers:
        theirs = words_of(answer)
        shared = sum((Counter(ours) & Counter(theirs)).values())
        exact = max(exact, float(ours == theirs))
        if not ours or not theirs:
            f1 = max(f1, float(ours == theirs))
        elif shared:
            f1 = max(f1, 2 * shared / (len(ours) + len(theirs)))
    return exact, f1


def last_answer(text: str) -> str:
    """What stands behind the first "the answer is" up to a full stop; without it the whole text."""
    found = ANSWER.search(text)
    return (found.group(1) if found else text).strip()


# -- prompts ---------------------------------------------------------------------------------------------------------


def mmlu_prompt(row: Mapping[str, Any]) -> str:
    """The question and its choices behind the row's own worked examples."""

    def one(item: Mapping[str, Any]) -> str:
        shown = "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, item["choices"], strict=False))
        return f"Question: {item['question']}{shown}\nAnswer:"

    topic = str(row.get("task") or "").replace("_", " ")
    head = f"The following are multiple choice questions (with answers){f' about {topic}' if topic else ''}.\n\n"
    worked = "".join(f"{one(item)} {LETTERS[int(item['answer'])]}\n\n" for item in row.get("examples") or [])
    return f"{head}{worked}{one(row)}"


def bbh_prompt(row: Mapping[str, Any]) -> str:
    """The task's chain of thought, then the question."""
    return (
        f"{str(row['cot']).strip()}\n\nFollow the examples, and end with 'so the answer is'.\nQ: {row['question']}\nA:"
    )


def trivia_prompt(row: Mapping[str, Any]) -> str:
    """Five worked examples, then the question."""
    shown = "".join(f"Q: {question}\nA: {answer}\n" for question, answer in EXAMPLES)
    return f"{shown}Please briefly answer the following question:\nQ: {row['question']}\nA:"


def truthful_row(row: Mapping[str, Any], index: int, targets: str) -> dict[str, Any]:
    """A question with its true answers first, in the columns of `multiple_choice`.

    Raises:
        RequestError: no true or no false answer.
    """
    pairs = list(zip(row[targets]["choices"], row[targets]["labels"], strict=True))
    true, false = ([str(text) for text, label in pairs if bool(label) is wanted] for wanted in (True, False))
    if not true or not false:
        raise RequestError(f"utility_truthfulness, row {index}, column '{targets}'", "true and false choices")
    return {"id": str(index), "question": f"Q: {row['question']}\nA:", "answer": true[0], "answer_aliases": true[1:],
            "perturbed_answer": false}  # fmt: skip


# -- one model -------------------------------------------------------------------------------------------------------


def utility(subject: CausalLM, source: str, most: int | None, cost: Cost | None = None) -> dict[str, list[float]]:
    """Values by row of each part that the source holds, from the cache or by running the model.

    Args:
        subject: the model.
        source: RWKU's data.
        most: rows of each part, evenly spaced; None: all.
    """
    prompt = subject.prompt.model_copy(update={"prompt": "{question}", "append_eos": False})
    found: dict[str, list[float]] = {}
    for config, run in PARTS.items():
        rows = read_config(source, config, optional=True)
        if most is not None and len(rows) > most:
            rows = [rows[int(i)] for i in np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int))]
        if not rows:
            continue
        key = digest_value({"rwku": config, "model": subject.digest, "prompt": prompt.model_dump(), "rows": rows})
        path = cache_folder() / "attacks" / f"{key.removeprefix('sha256:')}.json"
        if not path.exists():
            with _asked_as(subject, prompt):
                write_json(path, run(subject, rows))
            if cost is not None:
                cost.items += len(rows)
        found |= read_json(path)
    return found


@contextmanager
def _asked_as(subject: CausalLM, prompt: Any) -> Iterator[None]:
    own, subject.prompt = subject.prompt, prompt
    try:
        yield
    finally:
        subject.prompt = own


def _said(subject: CausalLM, prompts: Sequence[str], limit: int, label: str) -> list[str]:
    rows = canonical([{"id": str(i), "question": text, "answer": "-"} for i, text in enumerate(prompts)], label)
    made = subject.generate_all(subject.encode_prompts(rows, name=label), max_new_tokens=limit, label=label)
    return [subject.decode(tokens) for tokens in made]


def _mmlu(subject: CausalLM, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    data = canonical([
        {"id": str(i), "question": mmlu_prompt(row), "answer": LETTERS[int(row["answer"])],
         "perturbed_answer": [LETTERS[j] for j in range(len(row["choices"])) if j != int(row["answer"])]}
        for i, row in enumerate(rows)
    ], "mmlu")  # fmt: skip
    return {"mmlu": mc_rows(multiple_choice(subject, data))["mc1"].tolist()}


def _bbh(subject: CausalLM, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    said = _said(subject, [bbh_prompt(row) for row in rows], 256, "BBH")
    pairs = zip(said, rows, strict=True)
    return {"bbh": [best_match(last_answer(text), _texts(row["answer"]))[0] for text, row in pairs]}


def _truthful(subject: CausalLM, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    found = {}
    for name in ("mc1", "mc2"):
        data = canonical([truthful_row(row, i, f"{name}_targets") for i, row in enumerate(rows)], name)
        found[f"truthfulqa_{name}"] = mc_rows(multiple_choice(subject, data))[name].tolist()
    return found


def _trivia(subject: CausalLM, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    said = _said(subject, [trivia_prompt(row) for row in rows], 30, "TriviaQA")
    both = [best_match(text, _texts(row["answers"])) for text, row in zip(said, rows, strict=True)]
    return {"triviaqa_em": [pair[0] for pair in both], "triviaqa_f1": [pair[1] for pair in both]}


def _fluency(subject: CausalLM, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    said = _said(subject, [f"Instruction: {row['instruction']}\n" for row in rows], 256, "fluency")
    return {"fluency": [ngram_entropy(text) for text in said]}


def _texts(value: Any) -> list[str]:
    return [str(text) for text in value] if isinstance(value, (list, tuple)) else [str(value)]


PARTS: dict[str, Callable[[CausalLM, Sequence[Mapping[str, Any]]], dict[str, list[float]]]] = {
    "utility_general": _mmlu, "utility_reason": _bbh, "utility_truthfulness": _truthful, "utility_factuality": _trivia,
    "utility_fluency": _fluency,
}  # fmt: skip

TITLES = {
    "mmlu": ("MMLU", "Share of questions whose right letter is the likeliest."),
    "bbh": ("BBH", "Share of reasoning questions answered exactly, after a chain of thought."),
    "truthfulqa_mc1": ("TruthfulQA MC1", "Share of questions whose true answer beats every false one."),
    "truthfulqa_mc2": ("TruthfulQA MC2", "Probability of the true answers among all that are offered."),
    "triviaqa_em": ("TriviaQA exact match", "Share of questions answered exactly; low for a model that talks on."),
    "triviaqa_f1": ("TriviaQA F1", "Words shared with the right answer, the best over its forms."),
    "fluency": ("Fluency on instructions", "Entropy of word pairs and triples in long answers, times 100; 0 for one word."),
}  # fmt: skip


def utility_findings(evidence: Evidence) -> list[Finding]:
    """One finding for each part that was measured; none where there was no data for them."""
    share = Threshold(quantity="ratio", relation=">=", bound=evidence.config.thresholds.utility_share)
    own = (evidence.attack("rwku", "unlearned") or {}).get("utility") or {}
    found = []
    for name in (name for name in TITLES if name in own):

        def value(role: str, name: str = name) -> Estimate | None:
            rows = ((evidence.attack("rwku", role) or {}).get("utility") or {}).get(name)
            return None if rows is None else bootstrap_mean(rows, seed=evidence.config.seed)

        title, meaning = TITLES[name]
        found.append(
            compare(evidence, f"rwku/utility/{name}", title, meaning, "utility", "higher", value, threshold=share)
        )
    return found


__all__ = ["best_match", "last_answer", "mmlu_prompt", "truthful_row", "utility", "utility_findings", "words_of"]
