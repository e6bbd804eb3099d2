"""Experiments of the study: all ways on validation rows, then the best on three tasks over three seeds.

Invariant: the first stage uses validation rows and items that the general suite does not draw; the tasks of
the second are tested once, with the ways that the first has chosen.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import Problem, UserError
from reports.studies.fronts.ways import PLAIN, WAYS, candidates
from reports.studies.recipe_search import N_PUBLIC, PUBLIC, ROOT, dump, read, read_suite
from reports.studies.recipe_search import prepare as prepare_search

_INTENTS = (
    "card_acceptance pin_blocked atm_support change_pin compromised_card lost_or_stolen_card exchange_rate "
    "top_up_limits age_limit country_support passcode_forgotten terminate_account"
)
_LIMIT = 60  # items of each general task
_SEEDS = [0, 1, 2]


def prepare_ways(folder: Path) -> Path:
    """Write the first stage: every way at both strengths, one seed, the quickstart's target on validation."""
    search = prepare_search(folder, _LIMIT)
    dump(folder / "ways.yaml", {**read(search), "name": "fronts-ways", "candidates": candidates(WAYS)})
    return folder / "ways.yaml"


def prepare_tasks(folder: Path, chosen: Sequence[str]) -> list[Path]:
    """Write the second stage: plain LoRA and the chosen ways, one file per task; return the files.

    `chosen` are candidates of the first stage. The candidate that a way starts from is included. The files
    have a separate folder, because the first stage has a `support.yaml` too.
    """
    folder = folder / "tasks"
    folder.mkdir(parents=True, exist_ok=True)
    _write_suites(folder)
    recipes = candidates(WAYS)
    chosen_recipes = {name: recipes[name] for name in ("prompt", f"{PLAIN}-2", *chosen)}
    paths = []
    for name, target in {"support": _support(), "banking77": _banking(), "dolly": _dolly()}.items():
        keys = {
            "name": f"fronts-{name}",
            "base_model": "smollm2-135m",
            "target": target,
            "suites": ["drawn.yaml", *(["public.yaml"] if has_public_tasks() else [])],
            "seeds": _SEEDS,
            "candidates": chosen_recipes,
            "gate": {"tasks": [task["name"] for task in read(folder / "drawn.yaml")["tasks"]]},
        }
        paths.append(folder / f"{name}.yaml")
        dump(paths[-1], keys)
    return paths


def has_public_tasks() -> bool:
    """Tell whether there are local copies of the public tasks."""
    return bool(os.environ.get("HARNESS_DATASETS_DIR"))


def _write_suites(folder: Path) -> None:
    """Write the general suite, and public tasks unlike the prompts of replay; the latter do not gate."""
    general = read_suite("general")
    tasks = [task for task in general["tasks"] if task["kind"] != "bits_per_byte"]
    for task in tasks:
        task["limit"] = _LIMIT
    dump(folder / "drawn.yaml", {**general, "tasks": tasks})
    public = [{"lm_eval": name, "limit": N_PUBLIC, "chance": chance} for name, chance in PUBLIC.items()]
    dump(folder / "public.yaml", {"name": "public", "role": "capability", "tasks": public})


def _rows(path: str) -> Path:
    """Return a file of the real rows.

    Raises:
        UserError: the file does not exist.
    """
    file = Path(os.environ.get("HARNESS_TEST_DATA") or ROOT.parent / "shared" / "data") / "rows" / path
    if not file.exists():
        step = "HARNESS_TEST_DATA=FOLDER, which holds rows/"
        raise UserError("the study of fronts", f"no {file}", "the real rows that it trains on", step)
    return file


def _support() -> dict[str, Any]:
    (task,) = read_suite("support")["tasks"]
    target: dict[str, Any] = task | {"data": {key: task["data"][key] for key in task["data"] if key != "limits"}}
    return target


def _banking() -> dict[str, Any]:
    rows = {part: str(_rows(f"banking77/{part}")) for part in ("train.jsonl.gz", "test.jsonl")}
    limits = {"train": 360, "validation": 72, "test": 240}
    return {
        "name": "banking77",
        "data": {
            "train": rows["train.jsonl.gz"],
            "test": rows["test.jsonl"],
            "limits": limits,
            "unknown_labels": "drop",
            "contamination": "drop",
        },
        "fields": {"prompt": "{text}", "reference": "{label}"},
        "labels": _INTENTS.split(),
        "max_new_tokens": 12,
    }


def _dolly() -> dict[str, Any]:
    rows, limits = (
        str(_rows("dolly_3k/train.jsonl.gz")),
        {"train": 360, "validation": 48, "test": 150},
    )
    return {
        "name": "dolly",
        "data": {"all": rows, "limits": limits},
        "metrics": ["token_f1", "rouge"],
        "max_new_tokens": 64,
        "truncated_scores": True,
    }
