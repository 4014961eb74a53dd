"""The deletion certificate: an in-toto Statement about every file of a folder, with the claim first.

Form: in-toto Attestation Framework, Statement v1 (`_type`, `subject`, `predicateType`, `predicate`). The
subjects are the files of the manifest. The predicate states for each run: claim, request, sets, models,
method, evidence; and for the whole: what was not tested, where copies may be, and the place in the ledger.
`certificate.json` is the statement in canonical form, with its own digest, and with the signer's key id where
it was signed.

Nothing here holds a row of the data. The forget set's plain digest stays out too: only the keyed root goes
in. The predicate's digest does not depend on the subjects, so that a report may print it and still be a
subject.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from efface.errors import RunError, StorageError
from efface.report.claim import joint_claim
from efface.report.data import MethodResult
from efface.report.description import describe_run, known_copies
from efface.report.signing import key_id, load_private_key, sign
from efface.report.stored import StoredRun, file_in, read_runs
from efface.run.digests import canonical, digest_value
from efface.run.files import storage, write_bytes
from efface.run.manifest import MANIFEST, check_manifest, read_manifest

CERTIFICATE, ENVELOPE = "certificate.json", "certificate.dsse.json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://efface.dev/deletion-certificate/v1"


def _copies(known: list[dict[str, Any]], given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for copy in given:
        for key in ("place", "state"):
            if not isinstance(copy.get(key), str) or not copy[key].strip():
                raise RunError(f"a copy without '{key}': {copy}", "for each copy a place and its state in words")
    named = {copy["place"] for copy in given}
    return [copy for copy in known if copy["place"] not in named] + given


def assemble(
    entries: list[dict[str, Any]],
    *,
    not_tested: list[str],
    copies: list[dict[str, Any]],
    chain: dict[str, Any] | None,
    issued: str,
) -> dict[str, Any]:
    """The predicate from the descriptions of its runs, with its digest.

    Raises:
        RunError: no run, two runs of one label, no time of issue, or a number that JSON cannot hold.
    """
    claims = {entry["label"]: entry["claim"] for entry in entries}
    if not entries or len(claims) != len(entries):
        raise RunError(f"{len(entries)} runs with {len(claims)} labels", "at least one run, each with its own label")
    if not issued.strip():
        raise RunError("no time of issue", "UTC in ISO 8601")
    # Canonical form sorts keys: all others come after 'claim', so the claim stays first in the file too.
    predicate: dict[str, Any] = {
        "claim": joint_claim(claims),
        "runs": entries,
        "not_tested": not_tested,
        "copies": copies,
        "ledger": chain,
        "issued": issued,
    }
    try:
        predicate["digest"] = digest_value(predicate)
        whole: dict[str, Any] = json.loads(canonical(predicate))
    except (ValueError, TypeError) as error:
        raise RunError(f"a value cannot go into a certificate ({error})", "finite numbers, texts, lists") from error
    return whole


def _match(stored: list[StoredRun], result: MethodResult) -> StoredRun:
    """The stored run that a result was read from; what is certified is what lies in the folder."""
    wanted = canonical(result.run.model_dump(mode="json"))
    for run in stored:
        if canonical(run.run.model_dump(mode="json")) != wanted:
            continue
        differs = [
            run.findings != result.findings,
            run.outcome not in (None, result.outcome),
            run.quantisation not in (None, result.quantisation),
            run.relearning not in (None, result.relearning),
        ]
        if any(differs):
            raise RunError(
                f"{file_in(run.place, 'findings.json')} differs from the result '{result.label}'",
                "the findings that the folder holds",
                "audit again",
            )
        stored.remove(run)
        return run
    raise RunError(f"the result '{result.label}' fits no run.json of this folder", "results of the runs in it")


def build_predicate(
    folder: Path,
    results: list[MethodResult],
    *,
    not_tested: list[str],
    copies: list[dict[str, Any]],
    chain: dict[str, Any] | None,
    issued: str,
    ceilings: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The predicate alone: needs the folder's runs, but no manifest yet. Arguments: see `build_statement`."""
    folder = Path(folder)
    stored = read_runs(folder)
    known = known_copies(folder, stored)
    entries, untested = [], list(not_tested)
    for result in results:
        run = _match(stored, result)
        untested += [line for line in run.not_tested if line not in untested]
        on_disk = result.model_copy(update={"run": run.run, "costs": run.costs})
        entries.append(describe_run(run.place, on_disk, (ceilings or {}).get(run.run.method)))
    return assemble(entries, not_tested=untested, copies=_copies(known, copies), chain=chain, issued=issued)


def subjects(files: Mapping[str, str]) -> list[dict[str, Any]]:
    """The in-toto subjects of a manifest's files, sorted by name."""
    return [{"name": name, "digest": {"sha256": files[name].removeprefix("sha256:")}} for name in sorted(files)]


def build_statement(
    folder: Path,
    results: list[MethodResult],
    *,
    not_tested: list[str],
    copies: list[dict[str, Any]],
    chain: dict[str, Any] | None,
    issued: str,
    ceilings: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The statement about a finished folder.

    Args:
        folder: holds the runs and a manifest that fits.
        results: the audited runs of the folder, as its files say.
        not_tested: what was not tested, and known limits, in sentences; those of the audits are added.
        copies: where the data or its derivatives may still be: `place` and `state` in words, more keys as
            needed. One with the `place` of a copy from `known_copies` stands instead of that one.
        chain: from `efface.report.ledger.next_link`, or None.
        issued: UTC, ISO 8601.
        ceilings: method name to the claim level on its card; a run's own record may state less, not more.

    Raises:
        RunError: a file differs from the manifest, or the results do not fit the folder.
        StorageError: the folder is not finished.
    """
    folder = Path(folder)
    files = read_manifest(folder)["files"]
    if wrong := check_manifest(folder):
        raise RunError(
            f"{folder / wrong[0].file}: {wrong[0].problem}",
            "a folder as its manifest says",
            "run its command again",
        )
    predicate = build_predicate(
        folder, results, not_tested=not_tested, copies=copies, chain=chain, issued=issued, ceilings=ceilings
    )
    return {
        "_type": STATEMENT_TYPE,
        "subject": subjects(files),
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }


def write_certificate(folder: Path, statement: dict[str, Any], *, signing_key: Path | None = None) -> Path:
    """Write `certificate.json`, and with a key `certificate.dsse.json`; an older signature is removed.

    Args:
        folder: the folder that the statement is about.
        statement: from `build_statement`.
        signing_key: a private key (see `efface.report.signing`).

    Returns:
        The path of `certificate.json`.

    Raises:
        RunError: the folder's manifest is another one by now, or the key cannot be used.
        StorageError: a file cannot be written.
    """
    folder = Path(folder)
    if statement["subject"] != subjects(read_manifest(folder)["files"]):
        raise RunError(f"{folder / MANIFEST} is not the one that the statement was built from", None, "certify again")
    key = load_private_key(signing_key) if signing_key is not None else None
    body = dict(statement)
    with storage(folder / ENVELOPE):
        (folder / ENVELOPE).unlink(missing_ok=True)
    if key is not None:
        write_bytes(folder / ENVELOPE, sign(canonical(statement), key))
        body["signed_by"] = key_id(key.public_key())
    body["digest"] = digest_value(body)
    return write_bytes(folder / CERTIFICATE, canonical(body))


def read_certificate(folder: Path) -> tuple[dict[str, Any], str | None]:
    """Read a certificate and check its form and both of its digests.

    Returns:
        The statement, and the signer's key id (None where it was not signed).

    Raises:
        StorageError: absent or unreadable.
        RunError: changed after it was written, or no deletion certificate of this version.
    """
    path = Path(folder) / CERTIFICATE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        body = json.loads(data.decode("utf-8"))
        if canonical(body) != data or digest_value({k: v for k, v in body.items() if k != "digest"}) != body.pop(
            "digest"
        ):
            raise ValueError("its own digest does not fit")
        signer = body.pop("signed_by", None)
        if (body["_type"], body["predicateType"]) != (STATEMENT_TYPE, PREDICATE_TYPE):
            raise ValueError("another type of statement")
        predicate = {k: v for k, v in body["predicate"].items() if k != "digest"}
        if (
            set(body) != {"_type", "subject", "predicateType", "predicate"}
            or digest_value(predicate) != body["predicate"]["digest"]
        ):
            raise ValueError("the predicate's digest does not fit")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} was changed after it was written ({error})", "the file as efface wrote it") from error
    return body, signer
