"""`efface forget METHOD --forget A --forget B`: forgotten, audited after each request, reported, certified, verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efface.audit.evidence import Evidence
from efface.audit.folder import rederive
from efface.cli import run
from efface.forget.edit import Edit
from efface.run.files import read_json, write_json

FAST = ["learning_rate=1e-2", "epochs=3", "batch_size=4", "weight_decay=0"]


@pytest.fixture
def halves(tmp_path: Path, sets: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The forget rows as two files; ids are the same in both."""
    found = []
    for name, rows in (("first", sets["forget"][:4]), ("second", sets["forget"][4:])):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({**row, "id": i}) + "\n" for i, row in enumerate(rows)), encoding="utf-8")
        found += ["--forget", str(path)]
    return found


def test_from_two_requests_to_a_verified_certificate(
    tmp_path: Path, tiny_folder: Path, retrained_folder: Path, files: dict[str, Path], halves: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "run"
    command = ["forget", "gradient-difference", *FAST, "--model", str(tiny_folder), *halves, "--retain",
               str(files["retain"]), "--out", str(out)]  # fmt: skip
    assert run([*command, "--dry-run"]) == 0
    assert not out.exists()
    assert run(command) == 0
    edit = Edit.load(out / "edit")
    assert edit.facts.kind == "sequence"
    assert [row["rows"] for row in edit.facts.config["requests"]] == [4, 4]
    before = (out / "manifest.json").read_bytes()
    assert run(command) == 0
    assert (out / "manifest.json").read_bytes() == before, "the same command on a finished run changes nothing"
    assert run(["forget", "gradient-difference", *FAST, "--model", str(tiny_folder), *halves[:2], "--retain",
                str(files["retain"]), "--out", str(out)]) == 2  # fmt: skip

    audit = ["audit", str(out), "--suite", "tofu,sequence", "max_new_tokens=8", "--against", str(retrained_folder)]
    assert run(audit) in (0, 1)
    evidence = Evidence.load(out)
    rows = {row["metric"]: row for row in read_json(out / "findings.json")["findings"]}
    for number in (1, 2):
        table = evidence.tables["unlearned"][f"sequence.{number}-forget"].select("answer")
        own = [np.exp(np.mean(logp)) for i, logp in zip(table.ids, table.logp, strict=True) if i[0] == str(number)]
        assert rows[f"sequence/forgotten/{number}"]["unlearned"]["value"] == pytest.approx(np.mean(own))
        kept = evidence.tables["unlearned"][f"sequence.{number}-retain"].generated("rougeL_f1_unstemmed")
        assert rows[f"sequence/utility/{number}"]["unlearned"]["value"] == pytest.approx(np.mean(kept))
    after_one = evidence.tables["unlearned"]["sequence.1-forget"].select("answer").mean_logp
    after_two = evidence.tables["unlearned"]["sequence.2-forget"].select("answer").mean_logp
    returned = np.mean(np.exp(after_two[:4]) - np.exp(after_one[:4]))
    assert rows["sequence/returned/2"]["unlearned"]["value"] == pytest.approx(returned)
    assert rows["sequence/so_far/2"]["unlearned"]["value"] == pytest.approx(np.mean(np.exp(after_two)))
    final = evidence.tables["unlearned"]["forget"].select("answer").mean_logp
    assert np.array_equal(after_two, final), "the last stage is the unlearned model"
    assert after_one[:4].mean() < evidence.tables["original"]["forget"].select("answer").mean_logp[:4].mean()
    assert rows["sequence/utility/2"]["threshold"] is not None
    assert rows["sequence/utility/1"]["threshold"] is None

    assert run(["report", str(out)]) == 0
    assert "Request by request" in (out / "report.html").read_text(encoding="utf-8")
    assert run(["certify", str(out)]) == 0
    capsys.readouterr()
    assert run(["verify", str(out)]) == 0
    assert rederive(out) == []
    found = read_json(out / "findings.json")
    for row in found["findings"]:
        if row["metric"] == "sequence/utility/1":
            row["unlearned"]["value"] = 1.5
    write_json(out / "findings.json", found)
    assert rederive(out) == ["finding sequence/utility/1 differs from what the stored tables give"]


def test_bad_sequences_end_in_one_message(
    tmp_path: Path, tiny_folder: Path, files: dict[str, Path], halves: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--model", str(tiny_folder), "--retain", str(files["retain"]), "--out", str(tmp_path / "run")]
    assert run(["forget", "npo", *base, *halves[:2], *halves[:2]]) == 2
    assert "is also request 1" in capsys.readouterr().err
    assert run(["forget", "npo", "scope=lora", *base, *halves]) == 2
    assert "is not stacked" in capsys.readouterr().err
    assert run(["forget", "npo", *base, *halves[:2], "--forget", "a + b.jsonl"]) == 2
    assert "rename the file" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_list_in_a_config_file_is_a_sequence(
    tmp_path: Path, tiny_folder: Path, files: dict[str, Path], halves: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"forget: ['{halves[1]}', '{halves[3]}']\nretain: {files['retain']}\n", encoding="utf-8")
    arguments = ["--config", str(config), "--model", str(tiny_folder), "--out", str(tmp_path / "run"), "--dry-run"]
    assert run(["forget", "npo", *arguments]) == 0
    assert "8 rows to forget" in capsys.readouterr().out


def test_the_suite_says_why_a_single_request_has_no_steps(
    tmp_path: Path, tiny_folder: Path, files: dict[str, Path]
) -> None:
    out = tmp_path / "run"
    assert run(["forget", "gradient-ascent", *FAST, "--model", str(tiny_folder), "--forget", str(files["forget"]),
                "--out", str(out)]) == 0  # fmt: skip
    assert run(["audit", str(out), "--suite", "sequence"]) in (0, 1)
    [row] = [r for r in read_json(out / "findings.json")["findings"] if r["metric"].startswith("sequence/")]
    assert row["verdict"] == "not measured"
    assert "one request" in row["reason"]
