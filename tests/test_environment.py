"""What libraries read when they are imported: how long threads wait for each other by spinning."""

import os
import subprocess
import sys

import pytest

CODE = """
import os, sys
from harness.progress import spins_briefly
readings = iter([100.0, 100.0 + float(sys.argv[1])]) if len(sys.argv) > 1 else None
print(spins_briefly(readings and readings.__next__, 0.2), os.environ.get("GOMP_SPINCOUNT"))
"""


def settle(*busy_s, **given):
    """Settle it in a process of its own, where processors were busy for so many of 0.2 seconds."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    own = {name: value for name, value in os.environ.items() if name not in names} | given
    done = subprocess.run(
        [sys.executable, "-c", CODE, *map(str, busy_s)], env=own, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


N_PROCESSORS = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("busy_s", "given", "settled"),
    [
        (0.0, {}, ["False", "20000"]),
        (0.04, {}, ["False", "20000"]),
        (0.2, {}, ["True", "1000"]),
        ("nan", {}, ["True", "1000"]),
        (0.2, {"OMP_NUM_THREADS": str(N_PROCESSORS)}, ["True", "1000"]),
        (0.2 * N_PROCESSORS, {"OMP_NUM_THREADS": "1"}, ["False", "None"]),  # which waits for no other
        (0.2, {"OMP_NUM_THREADS": "many"}, ["True", "1000"]),
        (0.2, {"GOMP_SPINCOUNT": "7"}, ["False", "7"]),
        (0.2, {"OMP_WAIT_POLICY": "ACTIVE"}, ["False", "None"]),
    ],
)
def test_threads_spin_briefly_where_other_work_wants_their_processors(busy_s, given, settled):
    assert settle(busy_s, **given) == settled
