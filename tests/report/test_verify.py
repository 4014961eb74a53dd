"""The check of a folder: whatever is changed, by a bit or by a forger, does not hold and is named."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from certified_folder import certify, demo, failed, fill_run, load, make_result, make_run, named, single

from efface.errors import RunError
from efface.report.certificate import CERTIFICATE, ENVELOPE
from efface.report.signing import make_key_pair
from efface.report.verify import verify_folder
from efface.run.digests import canonical, digest_value
from efface.run.files import write_bytes, write_json
from efface.run.manifest import MANIFEST, write_manifest

SINGLE_FILES = [
    "README.md", "attacks/relearning.json", "certificate.dsse.json", "certificate.json", "costs.json", "curves.json",
    "edit/delta.safetensors", "examples.json", "findings.json", "manifest.json", "report.html", "run.json",
    "tables/unlearned/forget.arrow",
]  # fmt: skip


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_key_pair(folder / "mine.key")
    make_key_pair(folder / "theirs.key")
    return folder


@pytest.fixture
def signed(tmp_path: Path, keys: Path) -> Path:
    return single(tmp_path / "run", signing_key=keys / "mine.key")


@pytest.mark.parametrize("make", [single, demo])
def test_a_fresh_folder_holds(tmp_path: Path, keys: Path, make: Callable[..., Path]) -> None:
    make(tmp_path, signing_key=keys / "mine.key")
    checks = verify_folder(tmp_path, public_key=keys / "mine.key.pub", rederive=lambda _: [])
    assert failed(checks) == []
    names = {check.name for check in checks}
    assert names >= {"manifest", "certificate form", "certificate subjects", "certificate facts", "signature"}
    assert names >= {"ledger", "verdicts"}


def test_the_list_of_files_is_complete(signed: Path) -> None:
    found = sorted(p.relative_to(signed).as_posix() for p in signed.rglob("*") if p.is_file())
    assert found == SINGLE_FILES


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_one_flipped_bit_anywhere_names_the_file(signed: Path, name: str) -> None:
    path = signed / name
    whole = path.read_bytes()
    random_ = random.Random(name)
    positions = {0, len(whole) - 1, *(random_.randrange(len(whole)) for _ in range(12))}
    for position in sorted(positions):
        changed = bytearray(whole)
        changed[position] ^= 1 << random_.randrange(8)
        path.write_bytes(changed)
        assert name in named(verify_folder(signed)), position
    path.write_bytes(whole)
    assert failed(verify_folder(signed)) == []


@pytest.mark.parametrize("name", [CERTIFICATE, ENVELOPE, MANIFEST])
def test_bits_all_along_the_vouching_files_count(signed: Path, name: str) -> None:
    path = signed / name
    whole = path.read_bytes()
    for position in range(3, len(whole), 41):
        changed = bytearray(whole)
        changed[position] ^= 1 << (position % 8)
        path.write_bytes(changed)
        assert name in named(verify_folder(signed)), position


@pytest.mark.parametrize("name", SINGLE_FILES)
@pytest.mark.parametrize("cut", ["last byte", "half", "all", "longer"])
def test_a_file_of_another_length_is_named(signed: Path, name: str, cut: str) -> None:
    data = (signed / name).read_bytes()
    cuts = {"last byte": data[:-1], "half": data[: len(data) // 2], "all": b"", "longer": data + b"\n"}
    (signed / name).write_bytes(cuts[cut])
    assert name in named(verify_folder(signed))


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_a_removed_file_is_named(signed: Path, name: str) -> None:
    (signed / name).unlink()
    assert name in named(verify_folder(signed))


@pytest.mark.parametrize("name", ["more.txt", "edit/second.safetensors", ".partial-1-x", "tables/.partial-y"])
def test_an_added_file_is_named(signed: Path, name: str) -> None:
    (signed / name).write_bytes(b"x")
    assert name in named(verify_folder(signed))


def test_two_swapped_files_are_both_named(signed: Path) -> None:
    one, other = signed / "run.json", signed / "findings.json"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    assert named(verify_folder(signed)) >= {"run.json", "findings.json"}


def test_a_folder_in_the_place_of_a_file_is_named(signed: Path) -> None:
    (signed / "README.md").unlink()
    (signed / "README.md").mkdir()
    assert "README.md" in named(verify_folder(signed))


@pytest.mark.parametrize(
    "name", ["runs/npo/findings.json", "runs/ga/manifest.json", "models/original/model.safetensors"]
)
def test_bits_of_a_demo_folder_count_too(tmp_path: Path, name: str) -> None:
    demo(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / name).write_bytes(data)
    assert name in named(verify_folder(tmp_path))


def test_an_inner_manifest_that_disagrees_is_found(tmp_path: Path) -> None:
    demo(tmp_path)
    (tmp_path / "runs" / "npo" / "README.md").write_text("other", encoding="utf-8")
    write_manifest(tmp_path, kind="demo")
    found = [check for check in failed(verify_folder(tmp_path)) if check.name == "run manifest"]
    assert [check.file for check in found] == ["runs/npo/README.md"]


def test_no_manifest_and_no_folder(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        (check,) = failed(verify_folder(folder))
        assert check.name == "manifest"
        assert str(folder) in check.detail


def test_without_a_certificate_the_manifest_is_still_checked(tmp_path: Path) -> None:
    fill_run(tmp_path, make_result(make_run()))
    checks = verify_folder(tmp_path)
    assert failed(checks) == []
    assert any("run efface certify" in check.detail for check in checks)
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    assert named(verify_folder(tmp_path)) == {"run.json"}


def test_a_manifest_made_anew_does_not_fit_the_certificate(signed: Path) -> None:
    findings = load(signed, "findings.json")
    findings["findings"][0]["unlearned"]["value"] = 0.19
    write_json(signed / "findings.json", findings)
    write_manifest(signed, kind="forget")
    checks = failed(verify_folder(signed))
    assert {"certificate subjects", "certificate facts"} <= {check.name for check in checks}
    assert "findings.json" in {check.file for check in checks}
    assert any("findings[0].unlearned.value is 0.2, the folder says 0.19" in check.detail for check in checks)


def test_a_key_that_is_none_is_bad_input(signed: Path, keys: Path) -> None:
    with pytest.raises(RunError, match="not a public key"):
        verify_folder(signed, public_key=keys / "mine.key")


def test_a_ledger_for_a_certificate_without_an_entry_fails(tmp_path: Path) -> None:
    single(tmp_path / "run")
    (check,) = failed(verify_folder(tmp_path / "run", ledger=tmp_path / "ledger.jsonl"))
    assert (check.name, check.file) == ("ledger", CERTIFICATE)


def test_verdicts_that_come_out_differently_are_listed(tmp_path: Path) -> None:
    single(tmp_path)
    seen: list[Path] = []

    def rederive(folder: Path) -> list[str]:
        seen.append(folder)
        return ["a differs", "b differs"]

    found = failed(verify_folder(tmp_path, rederive=rederive))
    assert [(check.name, check.detail) for check in found] == [("verdicts", "a differs"), ("verdicts", "b differs")]
    assert seen == [tmp_path]

    def broken(_: Path) -> list[str]:
        raise RunError("no tables")

    assert "no tables" in failed(verify_folder(tmp_path, rederive=broken))[0].detail


def test_a_run_that_was_left_out_is_mentioned(tmp_path: Path) -> None:
    results = [make_result(make_run("npo")), make_result(make_run("ga"))]
    for result in results:
        fill_run(tmp_path / "runs" / result.run.method, result)
    write_manifest(tmp_path, kind="demo")
    certify(tmp_path, results[:1])
    checks = verify_folder(tmp_path)
    assert failed(checks) == []
    assert any("not certified: runs/ga" in check.detail for check in checks)


@pytest.mark.parametrize("text", ["[]", "{}", '{"findings": 3}', '[{"metric": 1}]', "null"])
def test_strange_findings_are_an_answer_not_a_crash(tmp_path: Path, text: str) -> None:
    single(tmp_path)
    (tmp_path / "findings.json").write_text(text, encoding="utf-8")
    write_manifest(tmp_path)
    assert {"certificate facts", "certificate subjects"} <= {c.name for c in failed(verify_folder(tmp_path))}


def test_subjects_that_are_no_list_are_an_answer_not_a_crash(tmp_path: Path) -> None:
    single(tmp_path)
    for wrong in (None, [1], [{"name": "a"}], "x"):
        body = json.loads((tmp_path / CERTIFICATE).read_bytes())
        body.pop("digest")
        body["subject"] = wrong
        write_bytes(tmp_path / CERTIFICATE, canonical({**body, "digest": digest_value(body)}))
        assert CERTIFICATE in named(verify_folder(tmp_path))
