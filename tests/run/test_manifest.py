"""The manifest: every flipped byte, every missing and every added file is found and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from efface.errors import StorageError
from efface.run.digests import canonical, digest_value
from efface.run.files import PARTIAL
from efface.run.manifest import MANIFEST, OUTSIDE, Mismatch, check_manifest, listed_files, read_manifest, write_manifest

FILES = {"a.json": b"{}\n", "b/c.bin": bytes(range(40)), "empty": b"", "b/ä ü.txt": b"text"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished folder."""
    for name, data in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    write_manifest(tmp_path, kind="run", version=1)
    return tmp_path


def test_a_whole_folder_fits(folder: Path) -> None:
    assert check_manifest(folder) == []
    body = read_manifest(folder)
    assert sorted(body["files"]) == sorted(FILES)
    assert (body["kind"], body["version"]) == ("run", 1)


def test_the_manifest_is_canonical_and_carries_its_own_digest(folder: Path) -> None:
    data = (folder / MANIFEST).read_bytes()
    body = json.loads(data)
    assert data == canonical(body)
    own = body.pop("digest")
    assert own == digest_value(body)
    first = (folder / MANIFEST).read_bytes()
    assert write_manifest(folder, version=1, kind="run") == own
    assert (folder / MANIFEST).read_bytes() == first


def test_every_flipped_byte_of_the_manifest_is_found(folder: Path) -> None:
    data = (folder / MANIFEST).read_bytes()
    for place in range(len(data)):
        for bit in (0, 5):  # another value, another case
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            (folder / MANIFEST).write_bytes(bytes(changed))
            found = check_manifest(folder)
            assert [row.file for row in found] == [MANIFEST], (place, bit)
            assert "changed after it was written" in found[0].problem


@pytest.mark.parametrize("name", [name for name, data in FILES.items() if data])
def test_every_flipped_byte_of_a_file_is_named(name: str, folder: Path) -> None:
    data = (folder / name).read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        (folder / name).write_bytes(bytes(changed))
        assert check_manifest(folder) == [Mismatch(name, "changed after it was written")]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    assert check_manifest(folder) == [Mismatch(name, "missing")]


@pytest.mark.parametrize("name", ["new", "b/new", "b/manifest.json", "b/certificate.json", "d/e/f"])
def test_an_added_file_is_named(name: str, folder: Path) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")
    assert check_manifest(folder) == [Mismatch(name, "not in the manifest")]


def test_a_renamed_file_is_missing_and_added(folder: Path) -> None:
    (folder / "a.json").rename(folder / "z.json")
    assert check_manifest(folder) == [Mismatch("a.json", "missing"), Mismatch("z.json", "not in the manifest")]


def test_an_added_link_is_named_even_where_it_leads_nowhere(folder: Path) -> None:
    (folder / "link").symlink_to("nowhere")
    assert check_manifest(folder) == [Mismatch("link", "not in the manifest")]


def test_a_file_that_became_a_folder_is_missing(folder: Path) -> None:
    (folder / "a.json").unlink()
    (folder / "a.json").mkdir()
    assert check_manifest(folder) == [Mismatch("a.json", "missing")]


def test_what_vouches_for_the_list_and_what_is_unfinished_stand_outside(folder: Path) -> None:
    for name in [*OUTSIDE - {MANIFEST}, f"{PARTIAL}1-x"]:
        (folder / name).write_bytes(b"x")
    assert listed_files(folder) == sorted(FILES)
    assert check_manifest(folder) == []


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"null", b"3", b"\xff", b'{"digest":"x"}', b'{"digest":"x","files":[]}', b"[" * 50_000],
    ids=["empty", "object", "list", "null", "number", "binary", "digest", "files", "deep"],
)
def test_a_manifest_of_another_form_is_found(data: bytes, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(data)
    assert [row.file for row in check_manifest(folder)] == [MANIFEST]


def test_the_same_content_in_another_form_is_found(folder: Path) -> None:
    body = json.loads((folder / MANIFEST).read_bytes())
    for text in (json.dumps(body), json.dumps(body, indent=1), json.dumps(body, separators=(",", ":"))):
        (folder / MANIFEST).write_text(text, encoding="utf-8")
        assert [row.file for row in check_manifest(folder)] == [MANIFEST]


def test_a_folder_without_a_manifest_is_not_finished(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    with pytest.raises(StorageError, match="not a finished run; run its command again"):
        read_manifest(folder)
    assert [row.file for row in check_manifest(folder)] == [MANIFEST]
