"""The browser that all tests of this folder share."""

import os

import pytest
from serving import chromium


@pytest.fixture(scope="session")
def browser():
    """Start Chromium; skip where it or its driver is absent, but never in CI."""
    if os.environ.get("CI") != "true":
        pytest.importorskip("playwright.sync_api")
        pytest.importorskip("streamlit")
    try:
        with chromium() as started:
            yield started
    except FileNotFoundError as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(missing))
