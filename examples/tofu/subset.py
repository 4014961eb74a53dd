"""Write 60 of TOFU's authors as JSONL, each row with its author's name: python subset.py DATA OUT

forget10's twenty authors and retain90's first forty, the first twenty of which have TOFU's paraphrased and wrong answers.
Names are found as the commonest run of capitalised words in an author's twenty questions and answers.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

Row = dict[str, Any]
EACH = 20
RETAIN = 40
NAME = re.compile(r"(?:[A-Z][\w'’-]+ )+(?:[A-Z][\w'’-]+)")


def read(path: Path) -> list[Row]:
    """Rows of a gzipped JSONL file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def author(rows: list[Row]) -> str:
    """The name that most of an author's rows hold; of equally common runs the longest."""
    found: Counter[str] = Counter()
    for row in rows:
        runs: set[str] = set()
        for text in (row["question"], row["answer"]):
            for run in NAME.findall(text.replace("'s", " ")):
                words = run.split()
                runs |= {" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 2, len(words) + 1)}
        found.update(runs)
    most = max(found.values())
    return max((name for name, count in found.items() if count >= 0.8 * most), key=len)


def main() -> None:
    """Both sets, the evaluation rows, and the names with a replacement each."""
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    forget, retain = read(data / "forget10_perturbed.jsonl.gz"), read(data / "retain90.jsonl.gz")[: RETAIN * EACH]
    extra = {row["question"]: row for row in read(data / "retain_perturbed.jsonl.gz")}
    names: dict[str, list[str]] = {}
    for part, rows in (("forget", forget), ("retain", retain)):
        names[part] = [author(rows[start : start + EACH]) for start in range(0, len(rows), EACH)]
        for index, row in enumerate(rows):
            row |= {"id": f"{part}/{index}", "concept": names[part][index // EACH]}
    evaluate = [{**extra[row["question"]], **row} for row in retain if row["question"] in extra]
    for name, rows in (("forget", forget), ("retain", retain), ("retain_perturbed", evaluate)):
        path = out / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        print(f"{len(rows):5d} rows  {path}")
    pairs = dict(zip(names["forget"], names["retain"], strict=False))
    (out / "names.json").write_text(json.dumps(pairs, ensure_ascii=False, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
