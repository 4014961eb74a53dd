"""The house: a room imports from the rooms below it, never from one above or beside it (DESIGN.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "efface"
BELOW = {
    "errors": set(),
    "verbs": set(),
    "run": {"errors"},
    "numerics": {"errors", "run"},
    "catalog": {"errors", "run"},
    "data": {"errors", "run", "numerics", "catalog"},
    "subjects": {"errors", "run", "numerics", "catalog", "data"},
    "train": {"errors", "run", "numerics", "catalog", "data", "subjects"},
}
FLOOR = {"errors", "verbs", "run", "numerics", "catalog", "data", "subjects", "train"}
BELOW["learn"] = FLOOR
BELOW["measure"] = FLOOR
BELOW["forget"] = FLOOR | {"measure"}
BELOW["audit"] = FLOOR | {"measure"}
BELOW["report"] = FLOOR | {"measure", "learn", "forget", "audit"}
BELOW["lab"] = BELOW["report"] | {"report"}
BELOW["proofs"] = BELOW["lab"] | {"lab"}
BELOW["cli"] = BELOW["proofs"] | {"proofs"}


def imports(path: Path) -> set[str]:
    """Rooms of efface that a file imports from, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module] if node.module != "efface" else [f"efface.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("efface.")}
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_arrows_go_down(path: Path) -> None:
    parts = path.relative_to(ROOT).parts
    if parts == ("__init__.py",):
        return
    room = parts[0].removesuffix(".py")
    wrong = imports(path) - BELOW[room] - {room, "__version__"}
    assert not wrong, f"{room} imports from {sorted(wrong)}"


def test_no_homeless_names() -> None:
    names = {path.stem for path in ROOT.rglob("*.py")}
    assert not names & {"utils", "util", "common", "helpers", "misc"}
