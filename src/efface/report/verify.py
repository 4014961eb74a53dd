"""Check a finished folder without network, model or GPU: every byte, every stated fact, signature and ledger.

What each check shows: the manifest shows damage and careless changes; the certificate shows that the manifest
is the one it was issued for; only a signature by a trusted key, or a ledger that is kept elsewhere, shows
that nobody made manifest and certificate anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from efface.errors import CheckFailed, EffaceError
from efface.report.certificate import CERTIFICATE, ENVELOPE, assemble, read_certificate
from efface.report.data import MethodResult
from efface.report.description import describe_run
from efface.report.ledger import check_statement
from efface.report.signing import load_public_key, verify
from efface.report.stored import file_in, read_run, run_places
from efface.run.digests import canonical, digest_value
from efface.run.files import PARTIAL
from efface.run.manifest import MANIFEST, OUTSIDE, check_manifest, read_manifest

Rederive = Callable[[Path], list[str]]
"""Derives the verdicts of a folder again from its score tables; returns every difference as a sentence."""

_SHOWN = 12
"""Differences of one kind that are listed one by one."""


@dataclass(frozen=True)
class Check:
    """One check: what was checked, whether it held, what was found, and the file that it is about."""

    name: str
    ok: bool
    detail: str
    file: str | None = None


def _manifest(folder: Path) -> tuple[list[Check], dict[str, str]]:
    """Every file against the manifest; the manifest's list where it can be read."""
    if not (folder / MANIFEST).is_file():
        return [Check("manifest", False, f"{folder} has no {MANIFEST}: it is not a finished run", MANIFEST)], {}
    try:
        wrong = check_manifest(folder)
        files = {} if any(row.file == MANIFEST for row in wrong) else read_manifest(folder)["files"]
    except (EffaceError, RecursionError) as error:
        return [Check("manifest", False, str(error), MANIFEST)], {}
    checks = [Check("manifest", False, row.problem, row.file) for row in wrong]
    for path in sorted(folder.rglob(f"{PARTIAL}*")):
        name = path.relative_to(folder).as_posix()
        checks.append(Check("manifest", False, "an unfinished file that no manifest covers; delete it", name))
    return checks or [Check("manifest", True, f"all {len(files)} files are as the manifest says")], files


def _inner_manifests(folder: Path, files: dict[str, str]) -> list[Check]:
    """Each inner run's manifest against the outer one; nothing is hashed twice."""
    checks = []
    for place in run_places(folder):
        name = file_in(place, MANIFEST)
        if place == "." or name not in files:
            continue
        prefix = f"{place}/"
        outer = {key.removeprefix(prefix): value for key, value in files.items() if key.startswith(prefix)}
        outer = {key: value for key, value in outer.items() if key not in OUTSIDE}
        try:
            inner = read_manifest(folder / place)["files"]
        except EffaceError as error:
            checks.append(Check("run manifest", False, str(error), name))
            continue
        wrong = sorted(key for key in inner.keys() | outer.keys() if inner.get(key) != outer.get(key))
        checks += [
            Check("run manifest", False, f"{name} and {MANIFEST} do not agree on it", prefix + key) for key in wrong
        ]
        if not wrong:
            checks.append(Check("run manifest", True, f"agrees with the outer manifest on {len(inner)} files", name))
    return checks


def _subjects(statement: dict[str, Any], files: dict[str, str]) -> list[Check]:
    """The certificate's subjects against the manifest's list."""
    try:
        named = {row["name"]: "sha256:" + row["digest"]["sha256"] for row in statement["subject"]}
        plain = len(named) == len(statement["subject"]) and all(
            set(r) == {"name", "digest"} for r in statement["subject"]
        )
    except (KeyError, TypeError) as error:
        return [Check("certificate subjects", False, f"not a list of names and digests ({error})", CERTIFICATE)]
    if not plain:
        return [Check("certificate subjects", False, "a file is named twice, or with unknown fields", CERTIFICATE)]
    checks = []
    for name in sorted(named.keys() | files.keys()):
        if named.get(name) != files.get(name):
            lacks = MANIFEST if name not in files else CERTIFICATE if name not in named else None
            text = f"not listed in {lacks}" if lacks else "the manifest has another digest than the certificate"
            checks.append(Check("certificate subjects", False, text, name))
    return checks or [Check("certificate subjects", True, f"the {len(named)} subjects are the manifest's files")]


def _differences(expected: Any, given: Any, path: str) -> list[str]:
    """The places at which two JSON values differ."""
    if isinstance(expected, dict) and isinstance(given, dict):
        keys = sorted(expected.keys() | given.keys())
        return [line for key in keys for line in _differences(expected.get(key), given.get(key), f"{path}.{key}")]
    if isinstance(expected, list) and isinstance(given, list) and len(expected) == len(given):
        pairs = enumerate(zip(expected, given, strict=True))
        return [line for i, (one, other) in pairs for line in _differences(one, other, f"{path}[{i}]")]
    if canonical(expected) == canonical(given):
        return []
    texts = [json.dumps(value, ensure_ascii=False)[:60] for value in (expected, given)]
    return [f"{path} is {texts[1]}, the folder says {texts[0]}"]


def _entry(folder: Path, given: dict[str, Any], places: list[str]) -> tuple[dict[str, Any], list[str]]:
    """What should be stated about a run: from its files, and from the certificate where none says.

    Also what its audit did not test.
    """
    if given["folder"] not in places:
        raise CheckFailed(f"the certificate names a run in '{given['folder']}', which is not in the folder")
    stored, evidence = read_run(folder, given["folder"]), given["evidence"]
    result = MethodResult.model_validate(
        {
            "label": given["label"],
            "run": stored.run,
            "findings": stored.findings,
            "costs": stored.costs,
            "outcome": stored.outcome or evidence["outcome"],
            "relearning": evidence["relearning"] if stored.relearning is None else stored.relearning,
            "quantisation": evidence["quantisation"] if stored.quantisation is None else stored.quantisation,
        }
    )
    return describe_run(given["folder"], result, given["method"]["claim_ceiling"]), stored.not_tested


def _facts(folder: Path, statement: dict[str, Any]) -> list[Check]:
    """Every fact of the certificate against the folder's files."""
    name = "certificate facts"
    try:
        given = statement["predicate"]
        places = run_places(folder)
        described = [_entry(folder, entry, places) for entry in given["runs"]]
        entries = [entry for entry, _ in described]
        expected = assemble(
            entries,
            not_tested=given["not_tested"],
            copies=given["copies"],
            chain=given["ledger"],
            issued=given["issued"],
        )
        # The digests were checked with the form; a difference that lies under them is the one to name.
        lines = _differences({**expected, "digest": None}, {**given, "digest": None}, "predicate")
        untested = dict.fromkeys(line for _, left_out in described for line in left_out)
        lines += [f"not_tested leaves out '{line}'" for line in untested if line not in given["not_tested"]]
    except EffaceError as error:
        return [Check(name, False, str(error), CERTIFICATE)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return [Check(name, False, f"the predicate is not complete ({reason})", CERTIFICATE)]
    if lines:
        more = [f"and {len(lines) - _SHOWN} more differences"] if len(lines) > _SHOWN else []
        return [Check(name, False, line, CERTIFICATE) for line in lines[:_SHOWN] + more]
    left = [place for place in places if place not in {entry["folder"] for entry in entries}]
    rest = f"; in the folder but not certified: {', '.join(left)}" if left else ""
    runs = "1 run" if len(entries) == 1 else f"{len(entries)} runs"
    return [Check(name, True, f"claim, request, models, method and findings of {runs} are as in the files{rest}")]


def _signature(
    folder: Path, statement: dict[str, Any] | None, signer: str | None, trusted: Ed25519PublicKey | None
) -> Check:
    """The envelope: its form, its content, its key."""

    def found(ok: bool, text: str, file: str | None = ENVELOPE) -> Check:
        return Check("signature", ok, text, file)

    path = folder / ENVELOPE
    if not path.is_file():
        if signer is not None:
            return found(False, f"{CERTIFICATE} was signed by {signer}; the signature is missing")
        if trusted is not None:
            return found(False, "a trusted key was given, but the certificate is not signed")
        return found(True, "not signed: the digests show changes, not who made the certificate", None)
    try:
        signed = verify(path.read_bytes(), trusted)
    except (EffaceError, OSError) as error:
        return found(False, str(error))
    if statement is None:
        return found(False, f"there is a signature, but no readable {CERTIFICATE}", CERTIFICATE)
    if signed.payload != canonical(statement):
        return found(False, f"the signed statement is not the one in {CERTIFICATE}")
    if signed.key_id != signer:
        return found(False, f"{CERTIFICATE} names the signer {signer}, the signature is by {signed.key_id}")
    if signed.trusted:
        return found(True, f"signed by the trusted key {signed.key_id}")
    note = "it fits the key that lies in the same file, which anyone could have put there"
    return found(True, f"signed by {signed.key_id}, not checked against a trusted key ({note})")


def _chain(statement: dict[str, Any], ledger: Path | None) -> Check:
    """The certificate's place in the ledger."""
    link = statement["predicate"].get("ledger")
    if ledger is None:
        place = "it names no entry" if link is None else "it names an entry; the ledger was not given"
        return Check("ledger", True, f"not checked: {place}")
    if not isinstance(link, dict):
        return Check("ledger", False, "a ledger was given; the certificate names no entry", CERTIFICATE)
    try:
        entry = check_statement(digest_value(statement), link, ledger)
    except EffaceError as error:
        return Check("ledger", False, str(error), str(ledger))
    return Check("ledger", True, f"entry {entry.index} of {entry.time}; the chain is whole")


def _verdicts(folder: Path, rederive: Rederive) -> list[Check]:
    try:
        lines = rederive(folder)
    except EffaceError as error:
        return [Check("verdicts", False, f"cannot be derived again: {error}")]
    return [Check("verdicts", False, line) for line in lines] or [
        Check("verdicts", True, "derived again from the score tables: the same")
    ]


def verify_folder(
    folder: Path,
    *,
    public_key: Path | None = None,
    ledger: Path | None = None,
    rederive: Rederive | None = None,
) -> list[Check]:
    """All checks of a finished folder, those that hold and those that do not.

    Args:
        folder: a run folder, or one that holds several runs.
        public_key: the key that must have signed; without it a signature is checked against its own key only.
        ledger: the ledger that must hold the certificate.
        rederive: derives the verdicts again from the score tables.

    Returns:
        The checks. The folder is as it was certified when every `ok` is True. Nothing that is wrong with the
        folder raises an exception.

    Raises:
        RunError: `public_key` is no public key.
    """
    folder = Path(folder)
    trusted = load_public_key(public_key) if public_key is not None else None
    checks, files = _manifest(folder)
    if files:
        checks += _inner_manifests(folder, files)
    statement, signer = None, None
    if (folder / CERTIFICATE).exists():
        try:
            statement, signer = read_certificate(folder)
            checks.append(Check("certificate form", True, "canonical, and its own digests fit", CERTIFICATE))
        except EffaceError as error:
            checks.append(Check("certificate form", False, str(error), CERTIFICATE))
        checks.append(_signature(folder, statement, signer, trusted))
    elif (folder / ENVELOPE).exists() or public_key is not None or ledger is not None:
        text = "there is a signature" if (folder / ENVELOPE).exists() else "a key or a ledger was given"
        checks.append(Check("certificate", False, f"{text}, but no {CERTIFICATE}", CERTIFICATE))
    else:
        checks.append(Check("certificate", True, "no certificate: run efface certify"))
    if statement is not None:
        checks += _subjects(statement, files) if files else []
        checks += [*_facts(folder, statement), _chain(statement, ledger)]
    return checks + (_verdicts(folder, rederive) if rederive is not None else [])
