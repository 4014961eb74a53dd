"""Methods that need more than rows, from the command line to the certificate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import efface
from efface.cli import run


def given(files: dict[str, Path]) -> list[str]:
    return ["--forget", str(files["forget"]), "--retain", str(files["retain"])]


def test_concepts_are_named_on_the_command_line(tiny_folder: Path, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["forget", "rocr", "layers=0", "projector=none", "--model", str(tiny_folder), *given(files)]
    names = ["--concept", "person0=person9", "--concept", "person1=person9"]
    assert run([*words, *names, "--out", str(out)]) == 0
    edit = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert edit["config"]["names"] == 2
    assert edit["request"]["concepts"].startswith("hmac-sha256:")
    assert "person9" not in (out / "run.json").read_text(encoding="utf-8")
    assert run([*words, *names, "--out", str(out)]) == 0  # the same command changes nothing
    assert run([*words, *names[:2], "--out", str(out)]) == 2  # other names are another request


@pytest.mark.parametrize("bad", [["="], ["a=b", "a=c"], ["a="], [" "]])
def test_bad_concepts(bad: list[str], tiny_folder: Path, files: dict[str, Path], tmp_path: Path) -> None:
    words = [part for name in bad for part in ("--concept", name)]
    assert (
        run(["forget", "rocr", "--model", str(tiny_folder), *given(files), *words, "--out", str(tmp_path / "r")]) == 2
    )
    assert not (tmp_path / "r").exists()


def test_epsilon_reaches_the_certificate(
    tiny_folder: Path, files: dict[str, Path], tmp_path: Path, retrained_folder: Path
) -> None:
    out = tmp_path / "run"
    quick = ["base_epochs=1", "base_batch_size=8", "epochs=1", "delta=1e-3", "learning_rate=1e-2"]
    assert run(["forget", "dp2unlearning", *quick, "--model", str(tiny_folder), *given(files), "--out", str(out)]) == 0
    audit = ["max_new_tokens=12", "relearning.max_steps=4", "relearning.every=2"]
    assert run(["audit", str(out), *audit, "--against", str(retrained_folder)]) in (0, 1)
    assert run(["report", str(out)]) == 0
    assert run(["certify", str(out)]) == 0
    claim = json.loads((out / "certificate.json").read_text(encoding="utf-8"))["predicate"]["claim"]
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert "epsilon" in record["guarantee"][0]
    if claim["level"] == "certified":
        assert claim["guarantee"] == record["guarantee"]
        assert "psilon" in claim["first_line"]
    assert "neighbours differ by one record" in (out / "report.html").read_text(encoding="utf-8")
    assert run(["verify", str(out)]) == 0


def test_a_sliced_ensemble_from_training_to_deletion(
    tiny_folder: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "sliced", tmp_path / "run"
    small = ["slices=2", "budget=2", "epochs=1", "rank=2", "alpha=4", "learning_rate=1e-3"]
    data = ["--data", str(files["retain"]), "--data", str(files["holdout"])]
    assert run(["learn", "s3t-slices", *small, "--model", str(tiny_folder), *data, "--out", str(folder)]) == 0
    one = tmp_path / "one.jsonl"
    one.write_text(files["retain"].read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    assert run(["forget", "s3t", "--model", str(folder), "--forget", str(one), "--out", str(out)]) == 0
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert record["claim"] == "exact"
    assert "bit for bit" in record["guarantee"][0]
    before, after = efface.load(folder), efface.load(folder)
    from efface.forget.edit import Edit

    Edit.load(out / "edit").apply(after)
    assert sum(len(prefix) for _, prefix in after.model.serving()) < sum(len(p) for _, p in before.model.serving())
    capsys.readouterr()
    assert run(["forget", "s3t", "--model", str(tiny_folder), "--forget", str(one), "--out", str(tmp_path / "no")]) == 2
    assert "no sliced ensemble" in capsys.readouterr().err
