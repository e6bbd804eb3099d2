"""Worker of several training jobs in sequence, so that the processes start only once."""

import sys
from pathlib import Path

from harness.training import run_job

if __name__ == "__main__":
    for folder in sys.argv[1:]:
        run_job(Path(folder), lambda *_: None)
