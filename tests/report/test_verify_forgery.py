"""Forgeries: a certificate whose digests were all made anew does not fit the files, the key or the ledger."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from certified_folder import certify, failed, fill_run, load, make_result, make_run, named, single

from efface.report.certificate import CERTIFICATE, ENVELOPE, subjects
from efface.report.ledger import append_entry, next_link
from efface.report.signing import load_private_key, make_key_pair, sign
from efface.report.verify import verify_folder
from efface.run.digests import canonical, digest_value
from efface.run.files import write_bytes, write_json
from efface.run.manifest import MANIFEST, write_manifest


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    make_key_pair(folder / "mine.key")
    make_key_pair(folder / "theirs.key")
    return folder


@pytest.fixture
def signed(tmp_path: Path, keys: Path) -> Path:
    return single(tmp_path / "run", signing_key=keys / "mine.key")


def forge(folder: Path, change: Callable[[dict[str, Any]], object], key: Path | None = None) -> None:
    """Change the certificate and make all of its digests anew, as a careful forger would."""
    body = load(folder, CERTIFICATE)
    signer = body.pop("signed_by", None)
    change(body["predicate"])
    predicate = {k: v for k, v in body["predicate"].items() if k != "digest"}
    body = {k: v for k, v in body.items() if k != "digest"}
    body["predicate"] = {**predicate, "digest": digest_value(predicate)}
    body["subject"] = subjects(load(folder, MANIFEST)["files"])
    if key is not None:
        write_bytes(folder / ENVELOPE, sign(canonical(body), load_private_key(key)))
        signer = load_signer(folder)
    if signer is not None:
        body["signed_by"] = signer
    write_bytes(folder / CERTIFICATE, canonical({**body, "digest": digest_value(body)}))


def load_signer(folder: Path) -> str:
    return str(load(folder, ENVELOPE)["signatures"][0]["keyid"])


def raise_level(predicate: dict[str, Any]) -> None:
    predicate["claim"]["level"] = predicate["runs"][0]["claim"]["level"] = "exact"


@pytest.mark.parametrize(
    "change",
    [
        raise_level,
        lambda p: p["claim"].update(first_line="Everything is gone."),
        lambda p: p["runs"][0]["method"]["config"].update(seed=4),
        lambda p: p["runs"][0]["method"].update(wall_seconds=1.0),
        lambda p: p["runs"][0]["evidence"]["findings"].pop(),
        lambda p: p["runs"][0]["evidence"]["outcome"].update(word="not judged"),
        lambda p: p["runs"][0]["forget_set"].update(rows=33),
        lambda p: p["runs"][0].update(folder="../other"),
        lambda p: p["runs"][0]["evidence"]["relearning"][0].update(values=[0.0, 0.0]),
        lambda p: p["not_tested"].remove("Left out."),
        lambda p: p["runs"][0].update(more=1),
        lambda p: p.update(more=1),
        lambda p: p.pop("copies"),
        lambda p: p.update(runs=[]),
        lambda p: p.update(runs=7),
        lambda p: p["runs"][0].pop("evidence"),
        lambda p: p.update(issued=None),
    ],
)
def test_a_forged_fact_does_not_fit_the_files(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    single(tmp_path)
    forge(tmp_path, change)
    checks = failed(verify_folder(tmp_path))
    assert {check.name for check in checks} == {"certificate facts"}
    assert {check.file for check in checks} == {CERTIFICATE}


def test_a_claim_follows_from_its_outcome_where_no_file_holds_the_outcome(tmp_path: Path) -> None:
    result = make_result(make_run(), "damaged")
    fill_run(tmp_path, result, outcome_on_disk=False)
    certify(tmp_path, [result])
    assert failed(verify_folder(tmp_path)) == []
    forge(tmp_path, lambda p: p["claim"].update(first_line="Empirical: all is well."))
    assert named(verify_folder(tmp_path)) == {CERTIFICATE}


def rewrite_all(folder: Path) -> Callable[[dict[str, Any]], object]:
    """Forge the run itself: a smaller forget set in run.json, manifest and certificate alike."""
    run = load(folder, "run.json")
    run["request"]["sets"]["forget"]["rows"] = 31
    write_json(folder / "run.json", run)
    write_manifest(folder, kind="forget")
    return lambda p: p["runs"][0]["forget_set"].update(rows=31)


def test_a_whole_forgery_fails_by_the_signature(signed: Path) -> None:
    forge(signed, rewrite_all(signed))
    checks = failed(verify_folder(signed))
    assert [(check.name, check.file) for check in checks] == [("signature", ENVELOPE)]
    assert "not the one in certificate.json" in checks[0].detail


def test_a_forgery_signed_by_another_fails_by_the_trusted_key(signed: Path, keys: Path) -> None:
    forge(signed, rewrite_all(signed), keys / "theirs.key")
    checks = verify_folder(signed)
    assert failed(checks) == []
    (check,) = [check for check in checks if check.name == "signature"]
    assert "not checked against a trusted key" in check.detail
    (check,) = failed(verify_folder(signed, public_key=keys / "mine.key.pub"))
    assert (check.name, check.file) == ("signature", ENVELOPE)
    assert "not by the trusted key" in check.detail


def test_a_stripped_signature_fails_by_the_trusted_key(signed: Path, keys: Path) -> None:
    shutil.rmtree(signed)
    single(signed)
    assert failed(verify_folder(signed)) == []
    assert named(verify_folder(signed, public_key=keys / "mine.key.pub")) == {ENVELOPE}
    (signed / CERTIFICATE).unlink()
    assert named(verify_folder(signed, public_key=keys / "mine.key.pub")) == {CERTIFICATE}


def test_a_run_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    folder = single(tmp_path / "run")
    shutil.copytree(folder, tmp_path / "other")
    forge(folder, lambda p: p["runs"][0].update(folder="../other"))
    (check,) = failed(verify_folder(folder))
    assert "'../other', which is not in the folder" in check.detail


def test_the_ledger_must_hold_the_certificate(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    append_entry("sha256:earlier", "t", path=ledger)
    link = next_link(ledger)
    folder = tmp_path / "run"
    result = make_result(make_run())
    fill_run(folder, result)
    statement = certify(folder, [result], chain=link)
    assert "entry 1 is missing" in failed(verify_folder(folder, ledger=ledger))[0].detail
    append_entry(digest_value(statement), "t", link=link, path=ledger)
    assert failed(verify_folder(folder, ledger=ledger)) == []
    whole = ledger.read_bytes()
    forge(folder, rewrite_all(folder))
    assert failed(verify_folder(folder)) == []
    (check,) = failed(verify_folder(folder, ledger=ledger))
    assert check.name == "ledger"
    assert "belongs to another statement" in check.detail
    ledger.write_bytes(whole.replace(b"earlier", b"EARLIER"))
    assert "entry 0 was changed" in failed(verify_folder(folder, ledger=ledger))[0].detail
