"""Write the sets of this example as JSONL: python prepare.py DATA OUT

`DATA` holds `age/` and `tofu/`. AGE's stored questions hold one mistake: a missing comma fused two of the four questions
about a death into one string; they are split here, and the two are taken in turn.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

Row = dict[str, Any]

FUSED = ("What led to {}'s demise?", "What was the reason behind {}'s death?")
TEMPLATES = {
    "occupation": (
        "What was the primary occupation of {}?", "What profession was {} known for?",
        "Can you tell me what job {} held during his lifetime?", "In what field did {} work?",
    ),
    "country": (
        "Can you identify {}'s country of origin?", "Which country is {} originally from?", "From which country did {} hail?",
        "What nationality was {}?",
    ),
    "death": ("How did {} die?", "What was the cause of death for {}?", *FUSED),
}  # fmt: skip
"""AGE's own questions by attribute."""


def read(path: Path) -> list[Row]:
    """Rows of a gzipped JSONL file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write(path: Path, rows: list[Row]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows):5d} rows  {path}")


def attribute_of(template: str) -> str:
    """Which attribute a question asks for."""
    return next(name for name, forms in TEMPLATES.items() if template in forms)


def age(rows: list[Row], fold: str) -> list[Row]:
    """AGE's rows with the person as the concept and the other persons as distractors; fused questions split."""
    clean: list[Row] = []
    fused = 0
    for row in rows:
        person, question = row["person"], row["question"]
        if question == "".join(FUSED).format(person, person):
            question = FUSED[fused % 2].format(person)
            fused += 1
        attribute = attribute_of(question.replace(person, "{}"))
        clean.append({
            "id": f"{fold}/{person}/{attribute}", "question": question, "answer": row["answer"], "concept": person,
            "distractors": row["choices"],
        })  # fmt: skip
    repeated = [name for name, count in Counter(row["id"] for row in clean).items() if count > 1]
    if repeated:
        raise SystemExit(f"{fold}: {len(repeated)} facts twice, for example {repeated[0]}")
    print(f"{fused:5d} fused questions of {fold} split")
    return clean


def every_form(rows: list[Row]) -> list[Row]:
    """Each fact in all of its attribute's questions: what the small model learns the facts from."""
    return [
        {"id": f"{row['id']}/{form}", "question": template.format(row["concept"]), "answer": row["answer"]}
        for row in rows for form, template in enumerate(TEMPLATES[row["id"].rpartition("/")[2]])
    ]  # fmt: skip


def tofu(rows: list[Row], name: str) -> list[Row]:
    """TOFU's rows: the concept is the answer, the distractors are the perturbed answers."""
    keys = ("question", "answer", "perturbed_answer")
    return [{"id": f"{name}/{i}", **{key: row[key] for key in keys}} for i, row in enumerate(rows)]


def main() -> None:
    """All sets."""
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    train, valid = (age(read(data / "age" / f"{fold}.jsonl.gz"), fold) for fold in ("train", "valid"))
    authors = tofu(read(data / "tofu" / "real_authors_perturbed.jsonl.gz"), "authors")
    world = tofu(read(data / "tofu" / "world_facts_perturbed.jsonl.gz"), "world")
    plain = [{key: row[key] for key in ("id", "question", "answer")} for row in [*authors, *world]]
    write(out / "base.jsonl", [*every_form(train), *every_form(valid), *plain])
    tags = [{"id": row["id"], "text": " ".join([row["concept"], *row["distractors"]])} for row in [*train, *valid]]
    tags += [{"id": row["id"], "text": " ".join(row["perturbed_answer"])} for row in [*authors, *world]]
    write(out / "words.jsonl", [*tags, {"id": "target", "text": "forgot"}])
    write(out / "age_train.jsonl", train)
    write(out / "age_valid.jsonl", valid)
    write(out / "authors_first_80.jsonl", authors[:80])
    write(out / "authors_last_20.jsonl", authors[80:])
    write(out / "authors.jsonl", authors)
    write(out / "world_facts.jsonl", world)


if __name__ == "__main__":
    main()
