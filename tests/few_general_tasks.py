"""Part of the general suite: only the tasks that a test reads, because the others take most of the time."""

from collections.abc import Mapping
from pathlib import Path

import yaml

SUITE = Path(__file__).parents[1] / "suites" / "general.yaml"


def write(folder: Path, limits: Mapping[str, int]) -> Path:
    """Write these tasks of the general suite with these numbers of items; return the suite's path."""
    suite = yaml.safe_load(SUITE.read_text())
    tasks = {task["name"]: task for task in suite["tasks"]}
    chosen = [tasks[name] | {"limit": limit} for name, limit in limits.items()]
    for task in chosen:
        task["data"] = {split: str(SUITE.parent / file) for split, file in task["data"].items()}
    path = folder / SUITE.name
    path.write_text(yaml.safe_dump(suite | {"tasks": chosen}))
    return path
