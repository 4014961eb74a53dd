"""Habit 6: nothing is unpickled, nothing is evaluated. The test walks the source, and shows that it would notice."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def offences(code: str) -> list[str]:
    """What the rules forbid in a source text."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [f"imports {alias.name}" for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            found.append(f"imports from {node.module}")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name in FORBIDDEN_CALLS:
                found.append(f"calls {name}")
            if name.endswith("torch.load") and keywords.get("weights_only") != "True":
                found.append("torch.load without weights_only=True")
            pickled = name in {"np.load", "numpy.load"} and keywords.get("allow_pickle", "False") != "False"
            if pickled or name in {"yaml.load", "yaml.unsafe_load", "yaml.full_load"}:
                found.append(f"calls {name}")
            if keywords.get("trust_remote_code") == "True":
                found.append("trusts remote code by itself")
            if keywords.get("shell") == "True" or name in {"os.system", "os.popen"}:
                found.append("runs a shell")
    return found


def test_the_source_is_free_of_them() -> None:
    found = {str(path): offences(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")}
    assert len(found) > 50
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "subprocess.run(x, shell=True)",
    ],
)
def test_the_walk_notices(planted: str) -> None:
    assert offences(planted)


def test_templates_never_mark_data_as_safe() -> None:
    for path in (SOURCE / "efface" / "report" / "templates").iterdir():
        text = path.read_text(encoding="utf-8")
        assert "|safe" not in text.replace(" ", ""), path.name
        assert "<script" not in text, path.name
