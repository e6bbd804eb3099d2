"""Two runs with one seed on the real model give the same table, except for measured times."""

import re
from pathlib import Path

import few_general_tasks
import pytest

import harness.experiment as experiment
from harness import store

ROOT = Path(__file__).parents[2]


# A task of each kind and a training of few steps: nondeterminism would show at any size.
KINDS = {"world_facts": 4, "chat_facts": 2, "prose_text": 2}
FEW = ["suites=[general.yaml]", "target.data.limits={train: 8, validation: 2, test: 4}"]


def answers(folder: Path) -> dict[str, tuple]:
    text = (ROOT / "harness.yaml").read_text()
    few_general_tasks.write(folder, KINDS)
    (folder / "harness.yaml").write_text(re.sub(r"suites/", f"{ROOT}/suites/", text))
    report = experiment.compare(folder / "harness.yaml", FEW, ["prompt,bag,lora"])
    return {
        f.name: (f.state, f.target, f.validation, f.slices, f.vs_untrained, f.verdict, f.training.loss)
        for f in report.facts
    }


@pytest.mark.slow
def test_two_runs_of_one_seed_give_the_same_numbers(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    first = answers(tmp_path / "first")
    assert first["lora"][0] == "done"
    store.remove((shared := store.base_rows_use().path).parent, [shared])  # the second run would find these
    assert first == answers(tmp_path / "second")
