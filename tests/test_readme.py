"""What the README says is run: its commands on the tiny model, its ten lines of Python, and its links."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from efface.cli import run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LATER: set[str] = set()
UNRECORDED: set[str] = set()
"""Systems whose proof is there and has not run on all of its seeds yet; their pages say so."""
"""Systems of which a part is here already (a measure of similarity, two baselines); the proof comes with the rest."""
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.S)


@pytest.fixture
def workplace(
    tmp_path: Path, tiny_folder: Path, retrained_folder: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder in which the README's names exist."""
    place = tmp_path / "place"
    place.mkdir()
    shutil.copytree(tiny_folder, place / "my-model")
    shutil.copytree(retrained_folder, place / "my-retrained-model")
    for name, target in (("forget", "forget"), ("retain", "retain"), ("holdout", "unseen")):
        shutil.copy(files[name], place / f"{target}.jsonl")
    monkeypatch.chdir(place)
    return place


def commands() -> list[list[str]]:
    """The efface commands of the README's shell blocks that stand on the user's own model."""
    block = next(text for kind, text in BLOCKS if not kind and "my-model" in text)
    return [shlex.split(line)[1:] for line in block.splitlines() if line.startswith("efface ")]


def test_the_commands_do_what_the_readme_says(workplace: Path) -> None:
    found = commands()
    assert [words[0] for words in found] == ["forget", "audit", "report", "certify", "verify"]
    for words in found:
        assert run(words) in ((0, 1) if words[0] == "audit" else (0,)), words
    assert (workplace / "run" / "report.html").exists()


def test_the_commands_on_pictures_do_what_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    from efface.learn.starts import StartConfig, new_dual_encoder

    texts = [
        f"a {colour} {thing}" for colour in ("red", "green", "blue", "grey") for thing in ("sky", "car", "dog", "cup")
    ]
    monkeypatch.chdir(tmp_path)
    new_dual_encoder(StartConfig(width=16, depth=1, heads=2, context=8), texts, 0).save(Path("my-clip"))
    Path("captions.txt").write_text("\n".join(texts), encoding="utf-8")
    Path("pictures").mkdir()
    for i in range(len(texts)):
        Image.new("RGB", (32, 32), (10 * i, 255 - 12 * i, (40 * i) % 256)).save(f"pictures/{i:02d}.png")
    rows = [json.dumps({"file_name": f"{i:02d}.png", "text": text}) for i, text in enumerate(texts)]
    Path("pictures/metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    block = next(text for kind, text in BLOCKS if not kind and "my-clip" in text)
    found = [shlex.split(line)[1:] for line in block.splitlines() if line.startswith("efface ")]
    assert [words[0] for words in found] == ["measure", "measure", "measure", "learn"]
    for words in found:
        assert run(words) == 0, words
    assert Path("gain/gallery.html").exists()
    assert Path("my-new-clip/model.safetensors").exists()


def test_the_commands_on_a_classifier_do_what_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    from sklearn.datasets import load_digits

    monkeypatch.chdir(tmp_path)
    images, labels = load_digits(return_X_y=True)
    for name, part in (("train", slice(0, 400)), ("test", slice(400, 600))):
        np.savez(f"{name}.npz", features=(images[part] / 16).astype(np.float32), labels=labels[part])
    assert run(["learn", "classifier", "--data", "train.npz#!class=3", "--out", "retrained", "epochs=20"]) == 0
    block = next(text for kind, text in BLOCKS if not kind and "train.npz" in text)
    found = [shlex.split(line)[1:] for line in block.splitlines() if line.startswith("efface ")]
    assert [words[0] for words in found] == ["learn", "forget", "audit"]
    for words in found:
        assert run(words) in ((0, 1) if words[0] == "audit" else (0,)), words
    assert Path("run/findings.json").exists()


def test_the_python_lines_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = next(text for kind, text in BLOCKS if kind == "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()
    assert (workplace / "my-edit" / "edit.json").exists()


def test_make_targets_and_links_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in [*re.findall(r"`?make ((?:\w[\w-]*)(?: [a-z]+)?)`", README), "demo"]:
        for word in target.split():
            assert re.search(rf"^{word}:", makefile, flags=re.M), word
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


def test_the_table_of_systems_is_current() -> None:
    from efface.cli.systems import page

    assert (ROOT / "docs" / "systems.md").read_text(encoding="utf-8").strip() == page().strip(), "run 'make docs'"


def test_every_system_has_a_current_page_and_a_proof() -> None:
    from efface.cli.pages import system_page, systems_with_pages
    from efface.proofs.proof import proofs
    from efface.run.files import read_json

    recorded = read_json(ROOT / "docs" / "results" / "proofs.json")
    found = systems_with_pages()
    assert {path.stem for path in (ROOT / "docs" / "systems").glob("*.md")} == set(found), "run 'make docs'"
    for system, members in found.items():
        text = (ROOT / "docs" / "systems" / f"{system}.md").read_text(encoding="utf-8")
        assert text == system_page(system, members, recorded.get(system)), f"{system}: run 'make docs'"
        if system in LATER:
            assert system not in proofs(), f"take {system} out of LATER"
            continue
        assert system in proofs(), f"{system} has no proof"
        if system in UNRECORDED:
            assert system not in recorded, f"take {system} out of UNRECORDED"
            continue
        assert "checks" in recorded[system], f"{system}: run 'efface prove {system} --write docs/results/proofs.json'"


@pytest.mark.parametrize("name", ["run.sh"])
def test_the_examples_are_well_formed(name: str) -> None:
    """Their shell parses, and every YAML key is one that the command takes."""
    from efface.audit.evidence import AuditConfig
    from efface.cli.values import read_config
    from efface.forget.method import find_method
    from efface.learn.recipes.causal_lm import CausalLMConfig

    folder = ROOT / "examples" / "tofu"
    subprocess.run(["bash", "-n", str(folder / name)], check=True)
    model = read_config(folder / "model.yaml")
    model.pop("recipe")
    CausalLMConfig.parse(model)
    AuditConfig.parse(read_config(folder / "audit.yaml"))
    for method in ("npo", "task-vector", "finetune", "retrain", "dpo-idk"):
        find_method(method).configure(read_config(folder / "forget.yaml"))
