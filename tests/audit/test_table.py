"""Score tables on the disk: whatever bit is damaged, reading raises or gives a table; it never ends the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from efface.audit.table import ScoreTable, build_scores
from efface.errors import StorageError

ROWS = [
    {
        "id": f"q{i}", "form": "answer", "variant": 0, "n_bytes": 5, "zlib_bytes": 13, "logp": [-0.5] * (i + 1),
        "rank": [0] * (i + 1), "mean": [-1.0] * (i + 1), "var": [0.1] * (i + 1),
    }
    for i in range(5)
]  # fmt: skip

READ = """
import sys
from pathlib import Path
from efface.audit.table import ScoreTable
from efface.errors import StorageError
folder = Path(sys.argv[1])
data = bytearray((folder / "t.arrow").read_bytes())
bad = 0
for place in range(0, len(data), 3):
    for bit in (0, 7):
        data[place] ^= 1 << bit
        (folder / "x.arrow").write_bytes(bytes(data))
        data[place] ^= 1 << bit
        try:
            ScoreTable.load(folder, "x").select("answer").sum_logp
        except Exception as error:
            bad += 1
print("alive", bad)
"""


def test_no_damaged_bit_ends_the_process(tmp_path: Path) -> None:
    ScoreTable(build_scores(ROWS), None, {"model": "m"}).save(tmp_path, "t")
    done = subprocess.run([sys.executable, "-c", READ, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-400:]
    word, count = done.stdout.split()
    assert word == "alive"
    assert int(count) > 10


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    path = ScoreTable(build_scores(ROWS), None).save(tmp_path, "t")[0]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StorageError, match=r"t\.arrow cannot be read"):
        ScoreTable.load(tmp_path, "t")
