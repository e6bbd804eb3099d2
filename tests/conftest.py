"""Where tests find real data, and no network for anything they load."""

import os

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]


def shared_data(path: str) -> Path:
    """Return a file of the real data; skip where it is absent, but never in CI."""
    folder = Path(os.environ.get("HARNESS_TEST_DATA") or _ROOT.parent / "shared" / "data")
    found = folder / path
    if found.exists():
        return found
    reason = f"no {found}; point HARNESS_TEST_DATA at the folder of real data"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
