"""The search for the quickstart's recipe and prompts: a study, run by hand and outside CI.

Every try is judged on validation alone: the target on its validation split, forgetting on those items of the
general suite that its limits leave undrawn. The quickstart's test items and the items that its gate asks are
seen by no try.

`PYTHONPATH=. python -m tests.studies.recipe_search` needs about an hour on two quiet cores; a second call
goes on where the first one stopped. It writes `reports/recipe_search.md` and `.json`. `--only NAME` runs
one part of the tries first.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

import harness
from harness import config
from harness.cli.progress_bar import TerminalProgress
from harness.data import load_task

ROOT = Path(__file__).parents[2]
SUITES = ROOT / "suites"

# As axolotl ships it, examples/llama-2/lora.yml: rank, rate, schedule and batch; the trainer keeps the best of
# its four epochs.
CARELESS = {
    "r": 32,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "learning_rate": 2e-4,
    "num_train_epochs": 4,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "warmup_steps": 10,
    "weight_decay": 0.0,
}
BATCH = {"r": 16, "per_device_train_batch_size": 4}


def lora(rate: float, epochs: int, replay: float = 0.0, **params: Any) -> dict[str, Any]:
    """Return a LoRA's recipe, with general rows for a share of the training rows."""
    recipe = {
        "method": "lora",
        "params": {**BATCH, "learning_rate": rate, "num_train_epochs": epochs, **params},
    }
    return {**recipe, "regularize": {"replay": {"share": replay}}} if replay else recipe


TRIES: dict[str, dict[str, dict[str, Any]]] = {
    "replayed": {
        "lr-1e-3-replay-1": lora(1e-3, 1, 1.0),
        "lr-2e-3-replay-1": lora(2e-3, 1, 1.0),
        "lr-5e-4-replay-1-2-epochs": lora(5e-4, 2, 1.0),
    },
    "careless": {
        "axolotl": {"method": "lora", "params": CARELESS},
        "lr-2e-3": lora(2e-3, 1),
    },
}


def prepare(folder: Path) -> Path:
    """Write the experiment: validation rows as the target's test, undrawn items as the suite's; no gate's item.

    Returns the path of harness.yaml.
    """
    folder.mkdir(parents=True, exist_ok=True)
    experiment = config.load(ROOT / "harness.yaml").experiment
    general = next(suite for suite in experiment.suites if suite.name == "general")
    written = read(SUITES / "general.yaml")
    tasks = []
    for task, keys in zip(general.tasks, written["tasks"], strict=True):
        if keys["kind"] == "bits_per_byte":
            continue
        drawn = {example.id for example in load_task(task, experiment.seeds[0]).test}
        lines = (SUITES / keys["data"]["test"]).read_text("utf-8").splitlines(keepends=True)
        (folder / f"{task.name}.jsonl").write_text(
            "".join(line for line in lines if json.loads(line)["id"] not in drawn), "utf-8"
        )
        tasks.append({**keys, "data": {"test": f"{task.name}.jsonl"}, "limit": 150})
    dump(folder / "general.yaml", {**written, "tasks": tasks})
    target = read(SUITES / "support.yaml")
    files = target["tasks"][0]["data"]
    data = {part: str(SUITES / files[part]) for part in ("train", "validation", "pairs", "documents")}
    target["tasks"][0]["data"] = {**data, "test": data["validation"]}
    dump(folder / "support.yaml", target)
    candidates = {name: recipe for part in TRIES.values() for name, recipe in part.items()}
    experiment_keys = {
        "name": "recipe-search",
        "base_model": "smollm2-135m",
        "target": "support.yaml",
        "suites": ["general.yaml"],
        "candidates": candidates,
    }
    dump(folder / "harness.yaml", experiment_keys)
    return folder / "harness.yaml"


def read(path: Path) -> dict[str, Any]:
    suite: dict[str, Any] = YAML(typ="safe").load(path)
    return suite


def dump(path: Path, value: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(dict(value), file)


def main() -> None:
    """Run what is missing of the search, and write its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "studies" / "recipe_search")
    parser.add_argument("--reports", type=Path, default=ROOT / "reports")
    parser.add_argument("--only", choices=list(TRIES))
    given = parser.parse_args()
    path = prepare(given.folder)
    parts = [given.only] if given.only else list(TRIES)
    names = [name for part in parts for name in TRIES[part]]
    report = harness.compare(path, candidates=names, progress=TerminalProgress())
    for facts in report.facts:
        sys.stdout.write(f"{facts.label} {facts.state}\n")


if __name__ == "__main__":
    main()
