"""What libraries read when they are imported: muted, and threads that do not spin long for each other."""

import os
import subprocess
import sys

import pytest

SAID = "import os; from harness.progress import quiet_environment as q; q(); print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_threads_spin_briefly_unless_somebody_says_how_they_wait(given, spins):
    own = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", SAID], env=own | given, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{spins}\n"
