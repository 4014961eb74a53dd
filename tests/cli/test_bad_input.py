"""Bad input of every kind: exit code 2, one readable line that says what to do, and nothing changed on the disk."""

# ruff: noqa: E501 - one case a line

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_world import Rows, small_world

from efface.cli import run

Prepare = Callable[[], object]
Case = tuple[str, Prepare, list[str], tuple[str, ...]]

FAST = ["epochs=1", "retain_term=none", "batch_size=4", "learning_rate=1e-2"]
AUDIT = ["--suite", "tofu", "max_new_tokens=2"]
ROW = {"id": "a", "question": "Which colour ?", "answer": "red ."}


def wrong(*settings: str, **options: str | None) -> list[str]:
    """The command `efface forget npo` that would work, with something else in some places."""
    given: dict[str, str | None] = {
        "method": "npo", "model": "model", "forget": "forget.jsonl", "retain": None, "holdout": None, "out": "out", **options
    }  # fmt: skip
    method = given.pop("method")
    words = [word for name, value in given.items() if value is not None for word in (f"--{name}", value)]
    return ["forget", *([method] if method else []), *FAST, *settings, *words]


def text(name: str, content: str | bytes) -> Prepare:
    """Write a file."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    return lambda: Path(name).write_bytes(data)


def lines(name: str, *rows: dict[str, Any]) -> Prepare:
    """Write rows as JSON lines."""
    return text(name, "".join(json.dumps(row) + "\n" for row in rows))


def nothing() -> None:
    """The input is bad as it stands."""


def gone(name: str) -> Prepare:
    """Delete a file."""
    return lambda: Path(name).unlink()


def folder(name: str, *kept: str) -> Prepare:
    """A folder with some files of the model."""

    def prepare() -> None:
        Path(name).mkdir()
        for own in kept:
            shutil.copy(f"model/{own}", f"{name}/{own}")

    return prepare


def both(*steps: Prepare) -> Prepare:
    """One after the other."""

    def prepare() -> None:
        for step in steps:
            step()

    return prepare


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Prepare:
    """Change the tensors of the model's file."""

    def prepare() -> None:
        tensors = load_file("model/model.safetensors")
        change(tensors)
        save_file(tensors, "model/model.safetensors", {"format": "pt"})

    return prepare


def truncated(name: str, keep: float = 0.5) -> Prepare:
    """Cut a file off."""

    def prepare() -> None:
        data = Path(name).read_bytes()
        Path(name).write_bytes(data[: int(len(data) * keep)])

    return prepare


def flipped(name: str) -> Prepare:
    """Flip the last byte of a file."""

    def prepare() -> None:
        data = bytearray(Path(name).read_bytes())
        data[-1] ^= 1
        Path(name).write_bytes(bytes(data))

    return prepare


def changed_json(name: str, change: Callable[[Any], object]) -> Prepare:
    """Change a JSON file."""

    def prepare() -> None:
        value = json.loads(Path(name).read_text(encoding="utf-8"))
        change(value)
        Path(name).write_text(json.dumps(value), encoding="utf-8")

    return prepare


def nan(tensors: dict[str, torch.Tensor]) -> None:
    """One weight is not a number."""
    tensors["model.norm.weight"][0] = float("nan")


def more_tokens(value: Any) -> None:
    """A tokenizer with tokens that the embedding has no row for."""
    vocabulary = value["model"]["vocab"]
    vocabulary.update({f"new{i}": len(vocabulary) + i for i in range(5)})


def merged(first: str, second: str, target: str) -> Prepare:
    """Join two files."""
    return lambda: Path(target).write_bytes(Path(first).read_bytes() + Path(second).read_bytes())


def first_line(source: str, target: str) -> Prepare:
    """Append the first line of a file to another."""
    return lambda: Path(target).write_bytes(Path(target).read_bytes() + Path(source).read_bytes().splitlines(True)[0])


def unfinished() -> None:
    """A run folder that was killed before its record was written."""
    for name in ("run.json", "manifest.json"):
        Path("run", name).unlink()


VIT = json.dumps({"model_type": "vit", "architectures": ["ViTForImageClassification"]})
HEADLESS = json.dumps({"model_type": "vit", "architectures": ["ViTModel"]})
LONG = " ".join(["colour"] * 80)

FILES: list[Case] = [
    ("missing file", nothing, wrong(forget="nowhere.jsonl"), ("nowhere.jsonl", "check the path")),
    ("missing retain file", nothing, wrong(retain="./nowhere.csv"), ("nowhere.csv", "check the path")),
    ("folder for a file", folder("d"), wrong(forget="d"), ("d is a folder", "name the file")),
    ("unknown suffix", text("f.xlsx", "a"), wrong(forget="f.xlsx"), ("unknown format '.xlsx'", ".jsonl", "convert")),
    ("not UTF-8", text("f.jsonl", b'{"text": "caf\xe9"}\n'), wrong(forget="f.jsonl"), ("not UTF-8", "byte 13", "save it as UTF-8")),
    ("broken gzip", text("f.jsonl.gz", gzip.compress(b"x" * 99)[:-12]), wrong(forget="f.jsonl.gz"), ("not a whole gzip", "again")),
    ("no gzip at all", text("f.json.gz", b"[]"), wrong(forget="f.json.gz"), ("not a whole gzip", "again")),
    ("broken JSON line", text("f.jsonl", '{"text": "a"}\n{"text": \n'), wrong(forget="f.jsonl"), ("f.jsonl, line 2", "one JSON object a line")),
    ("line that is no object", text("f.jsonl", '{"text": "a"}\n\n[1]\n'), wrong(forget="f.jsonl"), ("line 3: list", "object")),
    ("deeply nested JSON", text("f.json", "[" * 100_000), wrong(forget="f.json"), ("f.json", "not JSON", "mend the file")),
    ("deeply nested line", text("f.jsonl", "[" * 100_000), wrong(forget="f.jsonl"), ("line 1", "not JSON", "mend the line")),
    ("broken JSON", text("f.json", '[{"text": "a"}'), wrong(forget="f.json"), ("f.json", "not JSON", "mend the file")),
    ("JSON that is no list", text("f.json", '{"text": "a"}'), wrong(forget="f.json"), ("f.json: dict", "list of objects")),
    ("CSV with too many fields", text("f.csv", "question,answer\na,b\na,b,c\n"), wrong(forget="f.csv"), ("f.csv, line 3: more fields", "quote")),
    ("CSV with too few fields", text("f.csv", "question,answer\na\n"), wrong(forget="f.csv"), ("f.csv, line 2: fewer fields", "header")),
    ("CSV with a huge field", text("f.csv", f"question,answer\na,{'b' * 200_000}\n"), wrong(forget="f.csv"), ("f.csv, line 2", "field")),
    ("not Parquet", text("f.parquet", "no"), wrong(forget="f.parquet"), ("not a Parquet file", "export it again")),
]  # fmt: skip

ROWS: list[Case] = [
    ("missing columns", lines("f.jsonl", {"q": "a", "a": "b"}), wrong(forget="f.jsonl"), ("row 0", "['a', 'q']", "question and answer", "rename")),
    ("wrong type", lines("f.jsonl", ROW, {**ROW, "id": "b", "answer": 7}), wrong(forget="f.jsonl"), ("row 1, column 'answer'", "int", "expected text")),
    ("null", lines("f.jsonl", {**ROW, "question": None}), wrong(forget="f.jsonl"), ("row 0, column 'question'", "NoneType", "expected text")),
    ("empty answer", lines("f.jsonl", {**ROW, "answer": " \n"}), wrong(forget="f.jsonl"), ("row 0, column 'answer': empty", "drop the row")),
    ("empty file", text("f.jsonl", ""), wrong(forget="f.jsonl"), ("f.jsonl is empty", "at least one row")),
    ("header only", text("f.csv", "question,answer\n"), wrong(forget="f.csv"), ("f.csv is empty", "at least one row")),
    ("duplicate ids", lines("f.jsonl", ROW, {**ROW, "answer": "x"}), wrong(forget="f.jsonl"), ("row 1: id 'a' also in row 0", "unique ids")),
    ("ids 1 and '1'", lines("f.jsonl", {**ROW, "id": 1}, {**ROW, "id": "1"}), wrong(forget="f.jsonl"), ("row 1: id '1' also in row 0",)),
    ("bad id", lines("f.jsonl", {**ROW, "id": 1.5}), wrong(forget="f.jsonl"), ("row 0, column 'id': 1.5", "stable id")),
    ("empty id", lines("f.jsonl", {**ROW, "id": ""}), wrong(forget="f.jsonl"), ("row 0, column 'id': ''", "stable id")),
    ("forget overlaps retain", first_line("forget.jsonl", "retain.jsonl"), wrong(retain="retain.jsonl"), ("forget row 0 is also retain row 4", "remove it from the retain set")),
    ("holdout overlaps forget", first_line("forget.jsonl", "holdout.jsonl"), wrong(holdout="holdout.jsonl"), ("forget row 0 is also holdout row 4", "remove it")),
    ("holdout overlaps retain", first_line("retain.jsonl", "holdout.jsonl"), wrong(retain="retain.jsonl", holdout="holdout.jsonl"), ("retain row 0 is also holdout row 4",)),
    ("perturbed_answer is a number", lines("f.jsonl", {**ROW, "perturbed_answer": 3}), wrong(forget="f.jsonl"), ("row 0, column 'perturbed_answer': int", "list")),
    ("perturbed_answer holds nothing", lines("f.jsonl", {**ROW, "perturbed_answer": []}), wrong(forget="f.jsonl"), ("'perturbed_answer'", "non-empty")),
    ("perturbed_answer in some rows", lines("f.jsonl", {**ROW, "perturbed_answer": ["x"]}, {**ROW, "id": "b"}), wrong(forget="f.jsonl"), ("row 1, column 'perturbed_answer': missing", "row 0 has it")),
    ("paraphrased_answer is a list", lines("f.jsonl", {**ROW, "paraphrased_answer": ["x"]}), wrong(forget="f.jsonl"), ("row 0, column 'paraphrased_answer': list", "text")),
    ("messages is a text", lines("f.jsonl", {"messages": "hello"}), wrong(forget="f.jsonl"), ("column 'messages'", "str", "one user turn")),
    ("messages of three turns", lines("f.jsonl", {"messages": [{"role": "user", "content": "a"}] * 3}), wrong(forget="f.jsonl"), ("column 'messages'", "split longer")),
    ("messages without content", lines("f.jsonl", {"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}), wrong(forget="f.jsonl"), ("row 0, column 'content'", "missing")),
    ("bad --evaluate", nothing, [*wrong(), "--evaluate", "forget.jsonl"], ("--evaluate 'forget.jsonl'", "name=path")),
    ("longer than the context", lines("f.jsonl", {**ROW, "answer": LONG}), wrong(forget="f.jsonl"), ("forget row 0", "at most 64", "shorten or split")),
    ("prompt longer than the context", lines("f.jsonl", {**ROW, "question": LONG}), wrong(forget="f.jsonl"), ("forget row 0", "at most 64", "shorten or split")),
    ("longer than max_length", nothing, wrong("prompt.max_length=8"), ("forget row 0", "at most 8", "shorten or split")),
]  # fmt: skip

SETTINGS: list[Case] = [
    ("unknown method", nothing, wrong(method="npoo"), ("unknown method 'npoo'", "did you mean 'npo'?")),
    ("a recipe as a method", nothing, wrong(method="causal-lm"), ("unknown method 'causal-lm'",)),
    ("unknown key", nothing, wrong("betta=2"), ("unknown key 'betta' for npo", "did you mean 'beta'?")),
    ("unknown prompt key", nothing, wrong("prompt.styl=chat"), ("unknown key 'styl' for prompt", "did you mean 'style'?")),
    ("wrong value type", nothing, wrong("beta=high"), ("beta='high'", "valid number")),
    ("a mapping for a number", nothing, wrong("beta.x=1"), ("beta=", "valid number")),
    ("beta=0", nothing, wrong("beta=0"), ("beta=0", "greater than 0")),
    ("negative rate", nothing, wrong("learning_rate=-1"), ("learning_rate=-1", "greater than 0")),
    ("NaN rate", nothing, wrong("learning_rate=.nan"), ("learning_rate=nan", "finite")),
    ("infinite epochs", nothing, wrong("epochs=.inf"), ("epochs=inf", "finite")),
    ("half a batch", nothing, wrong("batch_size=1.5"), ("batch_size=1.5", "integer")),
    ("unknown choice", nothing, wrong("schedule=cosinus"), ("schedule='cosinus'", "'cosine'")),
    ("no '='", nothing, wrong("beta"), ("'beta'", "key=value", "learning_rate=1e-5")),
    ("no key", nothing, wrong("=3"), ("'=3'", "key=value")),
    ("value that is not YAML", nothing, wrong("beta=[1"), ("'beta=[1'", "plain value")),
    ("a key and its part", nothing, wrong("prompt=x", "prompt.style=chat"), ("'prompt.style=chat'", "either the whole or its parts")),
    ("prompt as a text", nothing, wrong("prompt=x"), ("prompt='x'", "prompt.style")),
    ("missing config file", nothing, [*wrong(), "--config", "none.yaml"], ("none.yaml", "YAML file", "check the path")),
    ("config that is not YAML", text("c.yaml", "a: [1\nb"), [*wrong(), "--config", "c.yaml"], ("c.yaml", "not YAML", "mend the file")),
    ("config that is binary", text("c.yaml", b"\xff\xfe\x00"), [*wrong(), "--config", "c.yaml"], ("c.yaml", "not YAML")),
    ("config that is a list", text("c.yaml", "- a\n"), [*wrong(), "--config", "c.yaml"], ("c.yaml: list", "key: value lines")),
    ("unknown key in the config", text("c.yaml", "modell: m\n"), [*wrong(), "--config", "c.yaml"], ("unknown key 'modell'",)),
    ("no method", nothing, wrong(method=None), ("no method", "a method's name", "efface forget METHOD")),
    ("no --model", nothing, wrong(model=None), ("no --model", "hub id or folder", "give it with --model")),
    ("no --forget", nothing, wrong(forget=None), ("no --forget", "rows to forget", "give it with --forget")),
    ("no --out", nothing, wrong(out=None), ("no --out", "run folder", "give it with --out")),
    ("unknown option", nothing, [*wrong(), "--fast"], ("--fast", "efface --help")),
    ("unknown command", nothing, ["forgett"], ("forgett", "efface --help")),
    ("retain term without a set", nothing, wrong("retain_term=nll"), ("retain_term=nll without a retain set", "--retain")),
    ("method that needs a retain set", nothing, wrong(method="gradient-difference"), ("gradient-difference without a retain set", "--retain")),
    ("scope=layers without layers", nothing, wrong("scope=layers"), ("scope=layers without layers", "layers='0,3-5'")),
    ("layers out of range", nothing, wrong("scope=layers", "layers='7'"), ("layers='7'", "between 0 and 1", "count from 0")),
    ("layers of another form", nothing, wrong("scope=layers", "layers=all"), ("layers='all'", "'0,3-5'")),
    ("layers with scope=all", nothing, wrong("layers='0'"), ("layers='0' with scope=all", "set scope=layers")),
    ("LoRA that matches nothing", nothing, wrong("scope=lora", "lora_targets=nothing"), ("lora_targets='nothing'", "names of linear modules")),
    ("micro batch that does not divide", nothing, wrong("micro_batch_size=3"), ("batch_size=4 with micro_batch_size=3", "multiple of 3")),
]  # fmt: skip

MODELS: list[Case] = [
    ("no folder", nothing, wrong(model="./none"), ("no folder at './none'", "check the path")),
    ("hub name offline", nothing, wrong(model="nobody/nothing"), ("nobody/nothing", "hub id", "network")),
    ("hub data offline", nothing, wrong(forget="nobody/nothing"), ("nobody/nothing", "network", "local file")),
    ("a file", nothing, wrong(model="forget.jsonl"), ("'forget.jsonl' is a file", "config.json", "name the folder")),
    ("no config.json", folder("m", "model.safetensors", "tokenizer.json"), wrong(model="m"), ("no config.json", "save_pretrained")),
    ("broken config.json", text("model/config.json", "{"), wrong(), ("'model'", "config.json")),
    ("no tokenizer", folder("m", "config.json", "model.safetensors"), wrong(model="m"), ("'m' has no tokenizer", "save the tokenizer there")),
    ("broken tokenizer", text("model/tokenizer.json", '{"model": 3}'), wrong(), ("'model'", "tokenizer")),
    ("no weights", both(folder("m", "config.json", "tokenizer.json")), wrong(model="m"), ("no weights", "safetensors")),
    ("only pickled weights", both(folder("m", "config.json", "tokenizer.json"), text("m/pytorch_model.bin", b"x")), wrong(model="m"), ("only pickled weights (pytorch_model.bin)", "convert")),
    ("truncated weights", truncated("model/model.safetensors"), wrong(), ("'model' are not whole", "complete safetensors", "again")),
    ("empty weights", text("model/model.safetensors", b""), wrong(), ("'model' are not whole", "again")),
    ("missing tensors", weights(lambda t: t.pop("model.norm.weight")), wrong(), ("lack 1 tensors", "model.norm.weight", "again")),
    ("tensors of another shape", weights(lambda t: t.update({"model.norm.weight": torch.ones(5)})), wrong(), ("'model'", "model.norm.weight", "shape")),
    ("NaN weights", weights(nan), wrong(), ("tensor model.norm.weight holds NaN", "finite", "sound checkpoint")),
    ("tokenizer larger than the embedding", changed_json("model/tokenizer.json", more_tokens), wrong(), ("embedding", "one source")),
    ("unknown dtype", nothing, wrong("dtype=float8"), ("dtype 'float8'", "bfloat16", "choose one")),
    ("revision of a folder", nothing, wrong("revision=main"), ("revision 'main'", "local folder", "leave revision out")),
    ("no such adapter", nothing, wrong("adapter=./none"), ("./none", "adapter")),
    ("chat without a template", nothing, wrong("prompt.style=chat"), ("no chat template", "style=plain")),
    ("a vision model", text("model/config.json", HEADLESS), wrong(), ("cannot load 'model' as a causal language model", "ViT")),
    ("a classifier of images and rows without labels", text("model/config.json", VIT), wrong(), ("forget.jsonl", "neither labels nor targets", "column 'label'")),
    ("an unknown architecture", text("model/config.json", '{"model_type": "brandnew"}'), wrong(), ("cannot load 'model'", "brandnew")),
]  # fmt: skip

RUNS: list[Case] = [
    ("--out holds another run", nothing, wrong("beta=3", out="run"), ("'run' holds a run with another config", "choose another --out")),
    ("--out is a file", nothing, wrong(out="forget.jsonl"), ("--out 'forget.jsonl' is a file", "another --out")),
    ("--out below a file", nothing, wrong(out="forget.jsonl/run"), ("forget.jsonl/run", "file", "--out")),
    ("--out is not empty", folder("out", "config.json"), wrong(), ("'out' is not empty", "choose another --out")),
    ("audit of no run", folder("d"), ["audit", "d"], ("'d' holds no run", "efface forget", "check the path")),
    ("audit of nothing", nothing, ["audit", "nowhere"], ("'nowhere' holds no run", "check the path")),
    ("audit without a target", nothing, ["audit"], ("no target", "a run folder or a model", "efface audit RUN")),
    ("audit of an unfinished run", unfinished, ["audit", "run"], ("'run' holds an unfinished run", "again to finish it")),
    ("record that is none", text("run/run.json", '{"kind": "forget"}'), ["audit", "run"], ("run.json is not a run record", "changed")),
    ("record that is no JSON", text("run/run.json", "{"), ["audit", "run"], ("run.json is not valid JSON", "changed")),
    ("unknown suite", nothing, ["audit", "run", "--suite", "tofuu"], ("unknown suite 'tofuu'", "did you mean 'tofu'?")),
    ("no suite", nothing, ["audit", "run", "--suite", ","], ("suite", "tofu")),
    ("unknown audit key", nothing, ["audit", "run", "relearning.max_step=3"], ("max_step", "did you mean 'max_steps'?")),
    ("unknown threshold", nothing, ["audit", "run", "thresholds.damag=0.1"], ("damag", "did you mean 'damage'?")),
    ("negative limit", nothing, ["audit", "run", "max_new_tokens=0"], ("max_new_tokens=0", "greater than or equal to 1")),
    ("--against the original", nothing, ["audit", "run", *AUDIT, "--against", "model"], ("--against 'model' is the original model itself", "without the forget set")),
    ("--against another tokenizer", nothing, ["audit", "run", *AUDIT, "--against", "other"], ("'other' has another tokenizer", "tokenizer of the audited model")),
    ("--against nothing", nothing, ["audit", "run", *AUDIT, "--against", "./none"], ("no folder at './none'", "check the path")),
    ("a model, --original missing", nothing, ["audit", "model", *AUDIT, "--forget", "forget.jsonl", "--out", "out", "--original", "./none"], ("no folder at './none'",)),
    ("a model without --out", nothing, ["audit", "model", *AUDIT, "--forget", "forget.jsonl"], ("no --out", "folder for the evidence")),
    ("model changed since", weights(lambda t: t["model.norm.weight"].mul_(2)), ["audit", "run", *AUDIT], ("the model at 'model' has digest", "as in the run", "forget again")),
    ("forget file changed since", merged("forget.jsonl", "holdout.jsonl", "forget.jsonl"), ["audit", "run", *AUDIT], ("the forget set (forget.jsonl) is not what it was", "restore the file")),
    ("forget file gone since", gone("forget.jsonl"), ["audit", "run", *AUDIT], ("forget.jsonl", "check the path")),
    ("edit damaged", flipped("run/edit/delta.safetensors"), ["audit", "run", *AUDIT], ("delta.safetensors was changed", "again")),
    ("edit lost", gone("run/edit/delta.safetensors"), ["audit", "run", *AUDIT], ("delta.safetensors is missing", "copy it again")),
    ("edit.json lost", gone("run/edit/edit.json"), ["audit", "run", *AUDIT], ("no edit in", "edit.json")),
    ("edit.json of unknown kind", changed_json("run/edit/edit.json", lambda v: v.update(kind="weight")), ["audit", "run", *AUDIT], ("kind 'weight'", "did you mean 'weights'?")),
    ("edit.json that is a list", text("run/edit/edit.json", "[]"), ["audit", "run", *AUDIT], ("edit.json",)),
    ("inputs.json that is none", text("run/inputs.json", "[]"), ["audit", "run", *AUDIT], ("inputs.json",)),
    ("forget into damaged inputs", text("run/inputs.json", "[]"), wrong(out="run"), ("inputs.json",)),
    ("report before the audit", nothing, ["report", "run"], ("'run' was not audited", "efface audit run")),
    ("report of nothing", nothing, ["report"], ("no run folder", "efface report RUN")),
    ("report of no run", folder("d"), ["report", "d"], ("'d' holds no finished run", "check the path")),
    ("report of several without --out", nothing, ["report", "run", "run"], ("several runs without --out", "--out FOLDER")),
    ("certify before the audit", nothing, ["certify", "run"], ("'run' was not audited", "efface audit run")),
    ("certify nothing", nothing, ["certify", "nowhere"], ("'nowhere' holds no run", "check the path")),
    ("certify an unfinished run", gone("run/manifest.json"), ["certify", "run"], ("not finished", "efface audit run")),
    ("verify nothing", nothing, ["verify", "nowhere"], ("no folder at 'nowhere'", "check the path")),
    ("verify a file", nothing, ["verify", "forget.jsonl"], ("no folder at 'forget.jsonl'",)),
    ("verify with no key", nothing, ["verify", "run", "--public-key", "none.pub"], ("none.pub",)),
    ("log that is garbage", text("log.json", "{garbage"), ["audit", "--import-log", "log.json"], ("log.json is not JSON", "TOFU_EVAL.json")),
    ("log that is binary", text("log.json", b"\xff\xfe"), ["audit", "--import-log", "log.json"], ("log.json is not JSON",)),
    ("log of unknown layout", text("log.json", '{"a": 1}'), ["audit", "--import-log", "log.json"], ("log.json holds", "per-question values")),
    ("log that is not there", nothing, ["audit", "--import-log", "log.json"], ("log.json cannot be read", "check the path")),
    ("log with another suite", text("log.json", "{}"), ["audit", "--import-log", "log.json", "--suite", "membership"], ("--import-log with suite membership", "leave --suite out")),
    ("unknown proof", nothing, ["prove", "npoo"], ("no proof of 'npoo'", "did you mean 'npo'?")),
    ("a proof and all", nothing, ["prove", "npo", "--all"], ("a name and --all", "one of them")),
    ("unknown system", nothing, ["systems", "nppo"], ("unknown system 'nppo'", "did you mean 'npo'?")),
    ("unknown recipe", nothing, ["learn", "causal-ml", "--data", "forget.jsonl", "--out", "out"], ("causal-ml", "did you mean 'causal-lm'?")),
]  # fmt: skip

CASES = [*FILES, *ROWS, *SETTINGS, *MODELS, *RUNS]


def tree() -> dict[str, str]:
    """Every path below the working folder with its digest."""
    paths = sorted(Path().rglob("*"))
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in paths}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, sets: dict[str, Rows]) -> Path:
    """A folder with two untrained models, the three files, and a finished run of one step."""
    place = small_world(tmp_path_factory.mktemp("world"), sets)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run(wrong(out="run")) == 0
    return place


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own copy of that folder as the working folder."""
    place = Path(shutil.copytree(world, tmp_path / "world"))
    monkeypatch.chdir(place)
    monkeypatch.delenv("EFFACE_DEBUG", raising=False)
    return place


def test_the_command_that_the_cases_spoil_works(here: Path) -> None:
    assert run(wrong()) == 0
    assert Path("out/run.json").exists()


def test_names_are_unique() -> None:
    assert len({case[0] for case in CASES}) == len(CASES) >= 45


@pytest.mark.parametrize(
    ("prepare", "argv", "fragments"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_one_line_that_says_what_to_do(
    prepare: Prepare, argv: list[str], fragments: tuple[str, ...], here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prepare()
    before = tree()
    capfd.readouterr()
    code = run(argv)
    shown = capfd.readouterr()
    assert code == 2, shown.err
    *progress, line = shown.err.removesuffix("\n").split("\n")
    assert line.startswith("error: ")
    assert all(re.fullmatch(r"[\w -]+( \(\w+\))?: done in [\d.]+ s", other) for other in progress), shown.err
    assert "Traceback" not in shown.out
    assert "internal error" not in line
    assert len(line) < 600
    for fragment in fragments:
        assert fragment in line
    assert tree() == before


def test_a_refused_command_does_not_block_its_folder(here: Path) -> None:
    assert run(wrong("scope=layers", "layers='7'")) == 2
    assert run(wrong("scope=layers", "layers='1'")) == 0


def test_verify_of_an_unfinished_folder_does_not_hold(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished()
    assert run(["verify", "run"]) == 1
    assert "not a finished run" in capsys.readouterr().out


def test_an_error_of_our_own_is_one_line_too(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("two\nlines")

    monkeypatch.setattr("efface.cli.values.merge", broken)
    assert run(wrong()) == 70
    shown = capsys.readouterr().err
    assert shown.startswith("error: internal error: AssertionError: two; ")
    assert shown.count("\n") == 1
