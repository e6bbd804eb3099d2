"""An adapter's folder without tensors, for hosts that answer by rule."""

import json
from pathlib import Path
from typing import Any

from harness.records import read_training_record
from harness.training import Weights, adapter_digest


def lay_down(folder: Path, base_digest: str, settings: dict[str, Any], training: dict[str, Any]) -> Weights:
    """Write the files of a finished training into the folder of weights, with these adapter settings."""
    adapter = folder / "adapter"
    adapter.mkdir(parents=True, exist_ok=True)
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    header = b"{}"
    (adapter / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    weights = Weights("adapter", adapter_digest(adapter, base_digest), folder, read_training_record(training))
    record = {"kind": weights.kind, "digest": weights.digest, "trained_on": base_digest, "training": training}
    (folder / "fit.json").write_text(json.dumps(record))
    return weights
