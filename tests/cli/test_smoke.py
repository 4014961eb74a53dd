"""The commands end to end on the tiny model, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from efface.cli import run

FAST = ["learning_rate=1e-2", "epochs=4", "batch_size=8"]
AUDIT = ["max_new_tokens=12", "relearning.max_steps=4", "relearning.every=2"]


@pytest.fixture
def finished(tmp_path: Path, tiny_folder: Path, retrained_folder: Path, files: dict[str, Path]) -> Path:
    """A run that was forgotten and audited."""
    out = tmp_path / "run"
    given = ["--forget", str(files["forget"]), "--retain", str(files["retain"]), "--holdout", str(files["holdout"])]
    assert run(["forget", "npo", *FAST, "--model", str(tiny_folder), *given, "--out", str(out)]) == 0
    assert run(["audit", str(out), *AUDIT, "--against", str(retrained_folder)]) in (0, 1)
    return out


def test_forget_audit_report_certify_verify(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(finished)]) == 0
    assert run(["certify", str(finished)]) == 0
    capsys.readouterr()
    assert run(["verify", str(finished), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"]
    assert any("verdicts" in row["check"] for row in answer["checks"])
    assert (finished / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    "name", ["edit/delta.safetensors", "tables/unlearned/forget.arrow", "findings.json", "run.json", "report.html"]
)
def test_a_flipped_bit_is_named(finished: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(finished)]) == 0
    assert run(["verify", str(finished)]) == 0
    capsys.readouterr()
    data = bytearray((finished / name).read_bytes())
    data[len(data) // 2] ^= 1
    (finished / name).write_bytes(bytes(data))
    assert run(["verify", str(finished)]) == 1
    assert name in capsys.readouterr().out


def test_the_same_forget_again_changes_nothing(finished: Path, tiny_folder: Path, files: dict[str, Path]) -> None:
    before = (finished / "edit" / "delta.safetensors").read_bytes()
    given = ["--forget", str(files["forget"]), "--retain", str(files["retain"]), "--holdout", str(files["holdout"])]
    assert run(["forget", "npo", *FAST, "--model", str(tiny_folder), *given, "--out", str(finished)]) == 0
    assert (finished / "edit" / "delta.safetensors").read_bytes() == before


def test_a_model_can_be_audited_without_a_run(
    tmp_path: Path,
    tiny_folder: Path,
    retrained_folder: Path,
    files: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--forget", str(files["forget"]), "--retain", str(files["retain"])]
    arguments = [str(retrained_folder), *given, "--original", str(tiny_folder), "--out", str(tmp_path / "audit")]
    code = run(["audit", *arguments, "--suite", "tofu,memorisation", "max_new_tokens=8", "--json"])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code in (0, 1)
    assert answer["outcome"]["word"] in {"not judged", "damaged", "suppressed"}
    assert not answer["outcome"]["reference"]


def test_systems_lists_every_card(capsys: pytest.CaptureFixture[str]) -> None:
    from efface.catalog import entries

    assert run(["systems", "--json"]) == 0
    names = {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert names == set(entries())
    assert {
        "npo",
        "simnpo",
        "dpo-idk",
        "gradient-ascent",
        "gradient-difference",
        "retrain",
        "finetune",
        "task-vector",
    } <= names


@pytest.mark.parametrize("name", ["npo", "tofu", "causal-lm"])
def test_one_card_with_its_parameters(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["systems", name]) == 0
    text = capsys.readouterr().out
    assert "paper" in text
    if name == "npo":
        assert "beta=0.1" in text


def test_config_file_options_and_words(
    tmp_path: Path, tiny_folder: Path, files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"method: npo\nmodel: {tiny_folder}\nforget: {files['forget']}\nretain: {files['retain']}\nbeta: 2\nepochs: 7\n",
        encoding="utf-8",
    )
    out = tmp_path / "dry"
    assert run(["forget", "--config", str(config), "epochs=3", "--out", str(out), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "beta: 2.0" in text
    assert "epochs: 3.0" in text
    assert not out.exists()


def test_purge_lists_and_removes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "x.safetensors").write_bytes(b"123")
    assert run(["purge"]) == 0
    assert (tmp_path / "reference" / "x.safetensors").exists()
    assert run(["purge", "--yes", "--json"]) == 0
    assert not (tmp_path / "reference").exists()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["removed"]
