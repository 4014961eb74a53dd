"""Stories: tiny language models that know facts by heart and are then taught to answer from short stories that state them.

A story is three true statements about elements in random order, one of which answers the question. Two students are made of
one model that has learned every fact by heart: one saw whole stories only, so memory answers as well as reading; the other
saw cut stories too, where the answer is gone and the right word is `unknown` (intervention-based training,
arXiv 2212.10696).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from datasets import Dataset

from efface.data.columns import canonical
from efface.data.interventions import UNKNOWN, Story, truncated
from efface.lab.facts import SPLIT_SEED, Table
from efface.lab.open_book import PROMPT, QUESTION, STATEMENT, cached_folder, chosen_facts, closed_rows
from efface.learn.recipes.causal_lm import CausalLMConfig, learn
from efface.subjects import CausalLM

RELATIONS = ("symbol", "number", "period", "block")
ELEMENTS, SENTENCES = 32, 3
TRAIN, TEST = 2400, 300
"""Stories to train on, and others to ask about."""
BATCH = 64
TEMPLATE = "{story} {question}"
Student = Literal["whole", "interventions"]
MEMORISE = CausalLMConfig(
    tokenizer="words", width=64, depth=3, heads=4, context=128, learning_rate=3e-3, batch_size=BATCH, warmup_ratio=0.2,
    epochs=500 * BATCH / (ELEMENTS * len(RELATIONS)),
)  # fmt: skip
"""500 steps until every fact is known by heart."""
STEPS: dict[Student, int] = {"whole": 150, "interventions": 300}


def _table() -> Table:
    return chosen_facts(ELEMENTS, RELATIONS)


def tell(count: int, rng: np.random.Generator) -> list[Story]:
    """Stories with their questions; the rationale is the statement that answers."""
    table = _table()
    facts = [(relation, name) for name, own in table.items() for relation in own]
    made = []
    for index in range(count):
        picked = [facts[i] for i in rng.choice(len(facts), SENTENCES, replace=False)]
        said = [STATEMENT.format(relation=r, concept=name, answer=table[name][r]) for r, name in picked]
        place = int(rng.integers(SENTENCES))
        relation, name = picked[place]
        start = sum(len(text) + 1 for text in said[:place])
        made.append(Story(
            id=f"story/{index}", story=" ".join(said), question=QUESTION.format(relation=relation, name=name),
            answer=table[name][relation], rationale_start=start, rationale_end=start + len(said[place]),
        ))  # fmt: skip
    return made


def training_stories() -> list[Story]:
    """The stories that the students are taught on."""
    return tell(TRAIN, np.random.default_rng(SPLIT_SEED + 2))


def test_stories() -> list[Story]:
    """Other draws, over the same facts."""
    return tell(TEST, np.random.default_rng(SPLIT_SEED + 3))


test_stories.__test__ = False  # type: ignore[attr-defined]


def row(story: Story, text: str, answer: str, identity: str) -> dict[str, Any]:
    """A training row: the story's text before its question."""
    return {"id": identity, "question": TEMPLATE.format(story=text, question=story.question), "answer": answer}


def whole_rows() -> Dataset:
    """Every training story with its answer."""
    return canonical([row(story, story.story, story.answer, story.id) for story in training_stories()], "stories")


def cut_rows(count: int) -> Dataset:
    """Stories cut before the answering sentence, to be answered with `unknown`; those that begin with it have none."""
    rows = []
    for story in training_stories():
        cut = truncated(story, "TS-R")
        if cut.text is not None:
            rows.append(row(story, cut.text, UNKNOWN, f"{story.id}/cut"))
    full = [{**rows[i % len(rows)], "id": f"cut/{i}"} for i in range(count)]
    return canonical(full, "cut stories")


def memorised(seed: int = 0) -> CausalLM:
    """The model that knows every fact by heart and has read no story; from the cache if there."""
    facts = canonical(closed_rows(_table()), "facts")
    config = MEMORISE.model_copy(update={"seed": seed})
    words = canonical([{"text": f"{UNKNOWN} not " + whole_rows()[0]["question"]}], "words")
    folder = cached_folder("stories", config, [facts, words])
    return learn([facts], folder / "memorised", config, prompt=PROMPT, tokenizer_data=[words], label="stories: facts")


def student(kind: Student, seed: int = 0) -> CausalLM:
    """A model taught on whole stories, or on whole and cut ones, half and half; from the cache if there.

    Args:
        kind: `whole` (150 steps) or `interventions` (300 steps), both at a learning rate of 1e-3.
        seed: of the starting weights and the order of the rows.
    """
    rows = [whole_rows()] + ([cut_rows(TRAIN)] if kind == "interventions" else [])
    config = MEMORISE.model_copy(
        update={
            "seed": seed,
            "learning_rate": 1e-3,
            "warmup_ratio": 0.0,
            "epochs": STEPS[kind] * BATCH / sum(map(len, rows)),
        }
    )
    start = memorised(seed)
    folder = cached_folder(f"stories of {start.digest}", config, rows)
    return learn(rows, folder / kind, config, model=start, prompt=PROMPT, label=f"stories: {kind}")


__all__ = ["TEMPLATE", "cut_rows", "memorised", "student", "tell", "test_stories", "training_stories", "whole_rows"]
