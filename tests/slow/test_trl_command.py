"""TRL's command line as a trainer: its template, filled with the tiny model, trains and is judged."""

import os
import sys
from pathlib import Path

import pytest
import tiny_experiment
from tiny_experiment import runs_of

from harness.experiment import compare

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_trl_sft_trains_an_adapter_by_the_template_that_ships(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    path = tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n  trl: trl\n")
    for name, more in (("trl.yaml", ""), ("trainers/trl.yaml", "use_cpu: true\nbf16: false\n")):
        copied = tmp_path / "baselines" / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text((ROOT / "baselines" / name).read_text() + more)
    facts = next(f for f in compare(path).facts if f.name == "trl")
    training, run = facts.training, runs_of(path)["trl"]
    assert (facts.state, training.others["exit_code"]) == ("done", 0), facts.error
    assert training.others["command_version"].startswith("trl 1.")
    assert len(training.loss) == 12, "30 rows, 8 a batch, three epochs"
    assert training.loss[-1][1] < training.loss[0][1]
    assert len(training.validation_loss) == 3
    assert run.weights_digest != run.base_digest
