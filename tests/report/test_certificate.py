"""The certificate: the claim comes first and is never too high, and nothing personal is in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from certified_folder import FINDINGS, ISSUED, certify, demo, fill_run, load, make_result, make_run, single

from efface.errors import RunError, StorageError
from efface.report.certificate import (
    CERTIFICATE,
    ENVELOPE,
    build_predicate,
    build_statement,
    read_certificate,
    write_certificate,
)
from efface.report.claim import LEVELS, claim_of, joint_claim
from efface.report.data import Outcome
from efface.report.signing import key_id, load_public_key, make_key_pair, verify
from efface.run.digests import canonical, digest_file, digest_value
from efface.run.files import write_text
from efface.run.manifest import read_manifest, write_manifest
from efface.run.record import ModelRecord


def outcome(word: str) -> Outcome:
    return Outcome(word=word, sentence="s")


def test_what_a_certified_claim_rests_on_stands_in_its_first_line() -> None:
    words = ["epsilon 2.1 at delta 1.0e-05 for each record", "neighbours differ by one record"]
    claim = claim_of(make_run(claim="certified", guarantee=words), outcome("removal-consistent"))
    assert claim["guarantee"] == words
    assert "Epsilon 2.1 at delta" in claim["first_line"]
    assert list(claim) == sorted(claim)
    lowered = claim_of(make_run(claim="certified", guarantee=words), outcome("suppressed"))
    assert lowered["guarantee"] == []
    assert "psilon" not in lowered["first_line"]
    both = joint_claim({"a": claim, "b": lowered})
    assert both["guarantee"] == [f"[a] {word}" for word in words]


@pytest.mark.parametrize("claim", LEVELS)
@pytest.mark.parametrize("ceiling", [None, *LEVELS])
def test_level_is_never_above_record_or_card(claim: str, ceiling: str | None) -> None:
    level = claim_of(make_run(claim=claim), outcome("removal-consistent"), ceiling)["level"]
    assert LEVELS.index(level) == max(LEVELS.index(claim), LEVELS.index(ceiling or "exact"))


@pytest.mark.parametrize(
    "changes",
    [{"edit_tensors": 0}, {"edit_edited_digest": "sha256:b"}, {"intention": "suppression"}],
)
def test_what_leaves_the_weights_is_suppressed(changes: dict[str, object]) -> None:
    claim = claim_of(make_run(claim="exact", **changes), outcome("removal-consistent"))
    assert claim["level"] == "suppressed"
    assert claim["first_line"].startswith("Suppressed")
    assert len(claim["limits"]) == 1


@pytest.mark.parametrize("word", ["suppressed", "not forgotten", "damaged"])
@pytest.mark.parametrize("claim", LEVELS)
def test_a_bad_outcome_comes_first(word: str, claim: str) -> None:
    made = claim_of(make_run(claim=claim), outcome(word))
    assert made["first_line"].lower().startswith(word)
    assert made["level"] == ("suppressed" if word == "suppressed" else claim)


def test_levels_are_said_in_words_and_silence_is_no_success() -> None:
    for claim in LEVELS:
        made = claim_of(make_run(claim=claim), outcome("removal-consistent"))
        assert made["first_line"].lower().startswith(claim)
        assert list(made) == sorted(made)
    silent = claim_of(make_run(), outcome("not judged"))["first_line"]
    assert silent.startswith("Not judged")
    assert "Nothing is shown" in silent


def test_unknown_words_are_refused() -> None:
    with pytest.raises(RunError, match="did you mean 'empirical'"):
        claim_of(make_run(claim="empirica"), outcome("removal-consistent"))
    with pytest.raises(RunError, match="unknown outcome 'forgotten'"):
        claim_of(make_run(), outcome("forgotten"))


def test_several_runs_are_claimed_one_by_one() -> None:
    claims = {
        "A": claim_of(make_run(claim="exact"), outcome("removal-consistent")),
        "B": claim_of(make_run(), outcome("not forgotten")),
    }
    joint = joint_claim(claims)
    assert joint["level"] == "empirical"
    assert "[A] Exact" in joint["first_line"]
    assert "[B] Not forgotten" in joint["first_line"]


def test_the_statement_covers_every_file_and_is_canonical(tmp_path: Path) -> None:
    single(tmp_path)
    data = (tmp_path / CERTIFICATE).read_bytes()
    body = json.loads(data)
    assert canonical(body) == data
    own = body.pop("digest")
    assert digest_value(body) == own
    assert body["_type"] == "https://in-toto.io/Statement/v1"
    assert body["predicateType"] == "https://efface.dev/deletion-certificate/v1"
    named = {row["name"]: row["digest"]["sha256"] for row in body["subject"]}
    assert named.keys() == read_manifest(tmp_path)["files"].keys()
    assert all(digest_file(tmp_path / name) == "sha256:" + value for name, value in named.items())
    assert read_certificate(tmp_path) == (body, None)


@pytest.mark.parametrize("make", [single, demo])
def test_the_claim_is_the_first_key_in_the_file(tmp_path: Path, make: object) -> None:
    make(tmp_path)  # type: ignore[operator]
    predicate = load(tmp_path, CERTIFICATE)["predicate"]
    for part in (predicate, *predicate["runs"]):
        assert next(iter(part)) == "claim"
        assert next(iter(part["claim"])) == "first_line"


def test_facts_come_from_the_records(tmp_path: Path) -> None:
    link = {"index": 0, "previous": "sha256:0"}
    single(tmp_path, chain=link, ceilings={"gentle-edit": "empirical"})
    predicate = load(tmp_path, CERTIFICATE)["predicate"]
    (run,) = predicate["runs"]
    assert predicate["issued"] == ISSUED
    assert predicate["ledger"] == link
    assert predicate["not_tested"] == ["Adversarial prompts.", "Left out."]
    assert run["request"] == {
        "id": "r1",
        "received": "2026-02-01",
        "done": "2026-02-28T09:00:00Z",
        "scope": "one person",
        "approved_by": None,
    }
    assert run["forget_set"]["rows"] == 32
    assert run["forget_set"]["merkle_root"] == "sha256:m"
    assert run["forget_set"]["canonicalisation"] == "efface-row-v1"
    assert run["other_sets"] == {"retain": {"rows": 160, "digest": "sha256:retain"}}
    assert run["model_after"] == {"edit": "sha256:e", "base": "sha256:b", "edited": "sha256:a"}
    method = run["method"]
    assert (method["name"], method["seed"], method["wall_seconds"]) == ("gentle-edit", 3, 3.75)
    assert (method["parameters_touched"], method["relative_change"]) == (1000, 0.0125)
    assert (method["claim_ceiling"], method["determinism"]) == ("empirical", "seeded")
    assert run["evidence"]["findings"][0]["unlearned"] == {"value": 0.2, "low": 0.1, "high": 0.3, "n": 32}
    assert run["evidence"]["findings"][0]["verdict"] == "holds"
    assert run["evidence"]["findings"][1]["reason"] == "needs a holdout set"
    assert run["evidence"]["reference_model"]["digest"] == "sha256:r"
    assert run["evidence"]["relearning"][0]["values"] == [0.1, 0.2]


def test_no_path_and_no_plain_digest_of_the_forget_set(tmp_path: Path) -> None:
    single(tmp_path)
    text = (tmp_path / CERTIFICATE).read_text(encoding="utf-8")
    assert "anna" not in text
    assert "sha256:forget" not in text
    assert "forget.jsonl" not in text
    assert '"source":"tiny"' in text
    for source, shown in [("org/model", "org/model"), ("C:\\Users\\anna\\tiny", "tiny"), ("~anna/tiny", "tiny")]:
        folder = tmp_path / digest_value(source)[-8:]
        result = make_result(make_run(model=ModelRecord(source=source, digest="sha256:b")))
        fill_run(folder, result)
        certify(folder, [result])
        assert load(folder, CERTIFICATE)["predicate"]["runs"][0]["model_before"]["source"] == shown


def test_copies_are_listed_and_given_ones_stand_first_hand(tmp_path: Path) -> None:
    given = [
        {"place": "base checkpoint", "state": "deleted on 2026-03-01"},
        {"place": "backup", "state": "unknown"},
    ]
    single(tmp_path, copies=given)
    copies = load(tmp_path, CERTIFICATE)["predicate"]["copies"]
    assert [copy["place"] for copy in copies] == [
        "reference caches", "edit", "score tables", "attack results", "examples", "base checkpoint", "backup"
    ]  # fmt: skip
    assert all(copy["state"] for copy in copies)
    assert copies[-2]["state"] == "deleted on 2026-03-01"
    with pytest.raises(RunError, match="without 'state'"):
        certify(tmp_path, [make_result(make_run())], copies=[{"place": "backup"}])


def test_predicate_digest_is_known_before_the_manifest(tmp_path: Path) -> None:
    result = make_result(make_run())
    fill_run(tmp_path, result)
    fields = {"not_tested": [], "copies": [], "chain": None, "issued": ISSUED}
    (tmp_path / "manifest.json").unlink()
    before = build_predicate(tmp_path, [result], **fields)  # type: ignore[arg-type]
    write_text(tmp_path / "report.html", before["digest"])
    write_manifest(tmp_path)
    after = build_statement(tmp_path, [result], **fields)["predicate"]  # type: ignore[arg-type]
    assert before == after


def test_same_input_same_bytes(tmp_path: Path) -> None:
    single(tmp_path / "a")
    single(tmp_path / "b")
    assert (tmp_path / "a" / CERTIFICATE).read_bytes() == (tmp_path / "b" / CERTIFICATE).read_bytes()


def test_only_what_lies_in_the_folder_is_certified(tmp_path: Path) -> None:
    result = make_result(make_run())
    fill_run(tmp_path, result)
    better = result.model_copy(update={"findings": FINDINGS[:1]})
    with pytest.raises(RunError, match=r"findings\.json differs"):
        certify(tmp_path, [better])
    with pytest.raises(RunError, match=r"findings\.json differs"):
        certify(tmp_path, [make_result(make_run(), "damaged")])
    with pytest.raises(RunError, match=r"differs from the result"):
        certify(tmp_path, [result.model_copy(update={"relearning": []})])
    with pytest.raises(RunError, match=r"fits no run\.json"):
        certify(tmp_path, [make_result(make_run(claim="exact"))])
    with pytest.raises(RunError, match="at least one run"):
        certify(tmp_path, [])
    with pytest.raises(RunError, match="fits no"):
        certify(tmp_path, [result, result])
    with pytest.raises(RunError, match="time of issue"):
        certify(tmp_path, [result], issued=" ")
    write_text(tmp_path / "README.md", "other")
    with pytest.raises(RunError, match=r"README\.md: changed"):
        certify(tmp_path, [result])
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(StorageError, match="not a finished run"):
        certify(tmp_path, [result])


def test_an_audit_without_an_edit_is_not_certified(tmp_path: Path) -> None:
    result = make_result(make_run(edit=None, kind="audit"))
    fill_run(tmp_path, result)
    with pytest.raises(RunError, match="has no edit"):
        certify(tmp_path, [result])


def test_a_number_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    result = make_result(make_run())
    fill_run(tmp_path, result)
    with pytest.raises(RunError, match="cannot go into a certificate"):
        certify(tmp_path, [result], copies=[{"place": "p", "state": "s", "size": float("nan")}])


def test_a_statement_of_an_older_manifest_is_not_written(tmp_path: Path) -> None:
    statement = certify(single(tmp_path), [make_result(make_run())])
    write_text(tmp_path / "late.txt", "more")
    write_manifest(tmp_path)
    with pytest.raises(RunError, match="certify again"):
        write_certificate(tmp_path, statement)


def test_signed_and_then_unsigned(tmp_path: Path) -> None:
    public = load_public_key(make_key_pair(tmp_path / "keys" / "signing.key"))
    folder = single(tmp_path / "run", signing_key=tmp_path / "keys" / "signing.key")
    statement, signer = read_certificate(folder)
    assert signer == key_id(public)
    assert verify((folder / ENVELOPE).read_bytes(), public).payload == canonical(statement)
    certify(folder, [make_result(make_run())])
    assert not (folder / ENVELOPE).exists()
    assert read_certificate(folder) == (statement, None)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b"\xff", b'{"digest":"x"}', b"[" * 100_000])
def test_garbage_is_no_certificate(tmp_path: Path, data: bytes) -> None:
    (tmp_path / CERTIFICATE).write_bytes(data)
    with pytest.raises(RunError, match="was changed after it was written"):
        read_certificate(tmp_path)
