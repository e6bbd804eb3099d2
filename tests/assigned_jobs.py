"""All jobs of an assignment in one worker process, in their order: what a pool asks of it, without a pool."""

import pickle
import sys
from pathlib import Path


def main() -> None:
    """Do the jobs of a file, the second argument, for the assignment that is the first."""
    from harness.experiment.executors.job_runner import run_job

    for job, known in pickle.loads(Path(sys.argv[2]).read_bytes()):
        outcome = run_job(Path(sys.argv[1]), job, known)
        assert outcome.error is None, outcome.error
