"""Stored tables as pandas frames, from a package that stays light."""

import subprocess
import sys
from pathlib import Path

import pytest
from test_store import save_two_runs

import harness
from harness.errors import UserError
from harness.store import TABLES, Store

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    store = Store(tmp_path / "runs")
    save_two_runs(store)
    return store.folder


@pytest.mark.parametrize(
    ("name", "n"), [("runs", 2), ("scores", 145), ("samples", 145), ("deltas", 0), ("verdicts", 0)]
)
def test_a_frame_has_the_documented_columns_and_a_row_for_each_of_the_table(folder, name, n):
    (table,) = (table for table in TABLES if table.name == name)
    frame = getattr(harness.frames, name)(folder)
    assert list(frame.columns) == [column.name for column in table.columns]
    assert len(frame) == n


def test_a_folder_without_runs_is_refused_and_importing_the_package_loads_no_pandas(tmp_path):
    with pytest.raises(UserError, match="no stored run"):
        harness.frames.runs(tmp_path)
    program = "import sys, harness; sys.exit(any(name in sys.modules for name in ('pandas', 'duckdb')))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
