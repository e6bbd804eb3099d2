"""A fine-tune of the real embedded model that collapses chat, at two sizes."""

from collections.abc import Sequence
from pathlib import Path

import harness.experiment as experiment
from harness.report import ExperimentReport

ROOT = Path(__file__).parents[1]

EXPERIMENT = f"""
name: collapse
target: {ROOT}/suites/support.yaml
suites: [{ROOT}/suites/general.yaml]
candidates:
  prompt: {{method: base, prompting: zero_shot}}
  lora: {{method: lora, params: {{learning_rate: 3.0e-3, num_train_epochs: 2}}}}
"""

# Half of each task and of the training rows: half of these rows still suffices to judge a rescue. The gate
# has its default margins.
HALF = [
    "target.data.limits={train: 160, validation: 16, test: 32}",
    *(f"suites.general.tasks.{t}.limit=128" for t in ("world_facts", "reading", "grammar", "arithmetic")),
    *(
        f"suites.general.tasks.{t}.limit=64"
        for t in ("chat_facts", "instructions", "arithmetic_words", "translation")
    ),
    *(f"suites.general.tasks.{t}.limit=16" for t in ("prose_text", "code_text", "chat_text")),
]

# The smallest sizes that show the collapse in every CI run: the same training, other numbers of items, and so
# few of the target that the best candidate is not timed again.
LEAST = [
    "target.data.limits={train: 160, validation: 8, test: 8}",
    *(f"suites.general.tasks.{t}.limit=64" for t in ("world_facts", "reading", "grammar", "arithmetic")),
    "suites.general.tasks.chat_facts.limit=64",
    *(f"suites.general.tasks.{t}.limit=8" for t in ("instructions", "arithmetic_words", "translation")),
    *(f"suites.general.tasks.{t}.limit=4" for t in ("prose_text", "code_text", "chat_text")),
]


def run(folder: Path, limits: Sequence[str]) -> tuple[Path, ExperimentReport]:
    path = folder / "harness.yaml"
    path.write_text(EXPERIMENT)
    return path, experiment.compare(path, limits)
