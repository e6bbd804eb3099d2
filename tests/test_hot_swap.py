"""Hot swap: adapters of one base are put on it and taken off again in memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import tiny_experiment

from harness.progress import Advance, SilentProgress

pytestmark = pytest.mark.usefixtures("own_cache")

PARAMS = "r: 2, max_steps: 1, max_length: 250"
CANDIDATES = f"""\
  prompt: {{method: base}}
  plain: {{method: lora, params: {{{PARAMS}}}}}
  pissa: {{method: peft, params: {{peft_type: LORA, init_lora_weights: pissa, {PARAMS}}}}}
  moved: {{method: spectrum, params: {{max_steps: 1, max_length: 250}}}}
  halved: {{method: scaled, init_from: plain, params: {{scale: 0.5}}}}
  shots: {{weights_of: plain, prompting: {{few_shot: {{select: fixed, shots: 1}}}}}}
"""


class Stages(SilentProgress):
    """Progress that keeps the names of its stages."""

    def __init__(self) -> None:
        self.names: list[str] = []

    @contextmanager
    def stage(self, label: str, expected_s: float = 0.0) -> Iterator[Advance]:
        self.names.append(label)
        with super().stage(label, expected_s) as advance:
            yield advance


@pytest.mark.e2e
def test_the_base_is_loaded_once_for_the_answers_of_all_its_adapters_and_deltas(tmp_path, tiny):
    """PiSSA moves the base's own weights, and is put on as a low-rank adapter of the base as published."""
    path, stages = tiny_experiment.write(tmp_path, tiny, CANDIDATES), Stages()
    report = tiny_experiment.run(path, "suites=[]", progress=stages)
    assert {f.name: f.state for f in report.facts} == dict.fromkeys(
        ("prompt", "plain", "pissa", "moved", "halved", "shots"), "done"
    )
    assert sum(name.startswith("training") for name in stages.names) == 4
    assert stages.names.count("loading the base model") == 1
