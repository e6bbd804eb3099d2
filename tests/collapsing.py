"""A fine-tune of the real embedded model that collapses chat, made once for all that look at it."""

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

# Half of each task and of the training rows keeps the tests short; the gate's margins stay as they are.
SMALLER = [
    "target.data.limits={train: 160, validation: 16, test: 32}",
    *(f"suites.general.tasks.{t}.limit=128" for t in ("world_facts", "reading", "grammar", "arithmetic")),
    *(
        f"suites.general.tasks.{t}.limit=64"
        for t in ("chat_facts", "instructions", "arithmetic_words", "translation")
    ),
    *(f"suites.general.tasks.{t}.limit=16" for t in ("prose_text", "code_text", "chat_text")),
]


def run(folder: Path) -> tuple[Path, list[str], ExperimentReport]:
    """Run the experiment; returns the path of its file, the overrides and the report."""
    path = folder / "harness.yaml"
    path.write_text(EXPERIMENT)
    return path, SMALLER, experiment.compare(path, SMALLER)
