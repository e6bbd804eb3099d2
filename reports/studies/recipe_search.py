"""The search for the quickstart's recipe and prompts: a study, run by hand and outside CI.

Every try is judged only on validation: the target on its validation split, forgetting on those items of the
general suite that its limits leave out. No try sees the quickstart's test items or its gate's items.

`HARNESS_DATASETS_DIR=DIR PYTHONPATH=. python -m reports.studies.recipe_search` needs about an hour on two quiet
cores; without local copies of the public tasks these are skipped. A second call resumes the first one. It
prints a table; `reports/recipe_search.md` has the findings and the choice. `--only NAME` runs one part of the
tries.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

import harness
from harness import config, formatting
from harness.cli.progress_bar import TerminalProgress
from harness.analysis.estimators import Comparison
from harness.data import load_task
from harness.analysis.candidate_facts import CandidateFacts
from harness.report import ExperimentReport

ROOT = Path(__file__).parents[2]
SUITES = ROOT / "suites"

# torchtune's LoRA for its smallest model, recipes/configs/qwen2/0.5B_lora_single_device.yaml, without its
# batches of 4 x 8 rows and warm-up of 100 steps: the quickstart's rows would give only seven such steps.
CARELESS = {
    "r": 32,
    "lora_alpha": 64,
    "target_modules": ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "learning_rate": 2e-3,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
}
PUBLIC = {"arc_easy": 0.25, "piqa": 0.5, "winogrande": 0.5, "boolq": 0.62, "blimp_passive_1": 0.5}
N_PUBLIC = 150
CHOSEN = ("torchtune", "qv-2e-3-2-epochs-kl")  # what the quickstart trains
TRAINED_ON = [str(SUITES / "support" / name) for name in ("train.jsonl", "harmless.jsonl")]
KL = {"strength": 4, "rows": 144, "rows_per_step": 1}
QV, QKVO = ["q_proj", "v_proj"], ["q_proj", "k_proj", "v_proj", "o_proj"]


def lora(rate: float, epochs: int, replay: float, modules: Sequence[str] = ()) -> dict[str, Any]:
    """Return a LoRA's recipe on TRAINED_ON; `replay` is the share of added general rows, 0 for a KL penalty."""
    params: dict[str, Any] = {"r": 16, "per_device_train_batch_size": 4}
    params |= {"learning_rate": rate, "num_train_epochs": epochs}
    params |= {"target_modules": list(modules)} if modules else {}
    regularizer = {"replay": {"share": replay}} if replay else {"kl": KL}
    return {"method": "lora", "train": TRAINED_ON, "params": params, "regularize": regularizer}


def with_retrieval(recipes: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the recipes, and for each one its weights with retrieved passages."""
    return {
        name: recipe
        for base, base_recipe in recipes.items()
        for name, recipe in ((base, base_recipe), (f"{base}-rag", {"weights_of": base, "prompting": "rag"}))
    }


def shots(select: str, n: int, rag: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a prompt with shots, and with passages if `rag` has parameters."""
    few_shot = {"select": select, "shots": n}
    return {"method": "base", "prompting": {"few_shot": few_shot, **({"rag": rag} if rag else {})}}


OTHER_SYSTEM = (
    "You work at the help desk of an outdoor shop. To a message, reply with the queue and the tone, "
    "exactly as in the examples. To a question, reply with the fact alone."
)
TRIES: dict[str, dict[str, dict[str, Any]]] = {
    "recipes": with_retrieval(
        {
            "1e-3-replay-1": lora(1e-3, 1, 1.0),
            "1.5e-3-replay-1": lora(1.5e-3, 1, 1.0),
            "1.5e-3-replay-0.5": lora(1.5e-3, 1, 0.5),
            "5e-4-2-epochs-replay-1": lora(5e-4, 2, 1.0),
            "1e-3-2-epochs-replay-0.5": lora(1e-3, 2, 0.5),
            "qkvo-1.5e-3-2-epochs-replay-0.5": lora(1.5e-3, 2, 0.5, QKVO),
            "qv-3e-3-replay-0.75": lora(3e-3, 1, 0.75, QV),
            "qv-2e-3-2-epochs-replay-0.5": lora(2e-3, 2, 0.5, QV),
            "qv-2e-3-2-epochs-replay-0.33": lora(2e-3, 2, 0.33, QV),
            "qv-2e-3-2-epochs-kl": lora(2e-3, 2, 0.0, QV),
        }
    ),
    "prompts": {
        "fixed-4": shots("fixed", 4),
        "fixed-8": shots("fixed", 8),
        "knn-4": shots("knn", 4),
        "knn-8": shots("knn", 8),
        "knn-8-other-system": {**shots("knn", 8), "system": OTHER_SYSTEM},
        "ranked-4": {**shots("knn", 4), "answer": "rank"},
        "ranked-8": {**shots("knn", 8), "answer": "rank"},
        "rag-2": {"method": "base", "prompting": {"rag": {"top_k": 2}}},
        "rag-2-knn-4": shots("knn", 4, {"top_k": 2}),
    },
    "careless": with_retrieval({"torchtune": {"method": "lora", "params": CARELESS}}),
}


def prepare(folder: Path, limit: int = 150) -> Path:
    """Write the experiment: validation rows serve as test, the suite gets only items that no gate uses.

    `limit` is the number of items per general task. Returns the path of harness.yaml.
    """
    folder.mkdir(parents=True, exist_ok=True)
    experiment = config.load(ROOT / "harness.yaml").experiment
    general = next(suite for suite in experiment.suites if suite.name == "general")
    suite = read(SUITES / "general.yaml")
    tasks = []
    for task, keys in zip(general.tasks, suite["tasks"], strict=True):
        if keys["kind"] == "bits_per_byte":
            continue
        gate_ids = {example.id for example in load_task(task, experiment.seeds[0]).test}
        lines = (SUITES / keys["data"]["test"]).read_text("utf-8").splitlines(keepends=True)
        (folder / f"{task.name}.jsonl").write_text(
            "".join(line for line in lines if json.loads(line)["id"] not in gate_ids), "utf-8"
        )
        tasks.append({**keys, "data": {"test": f"{task.name}.jsonl"}, "limit": limit})
    dump(folder / "general.yaml", {**suite, "tasks": tasks})
    target = read_suite("support")
    files = target["tasks"][0]["data"]
    data = {part: files[part] for part in ("train", "validation", "pairs", "documents")}
    target["tasks"][0]["data"] = {**data, "test": data["validation"]}
    dump(folder / "support.yaml", target)
    candidates = {name: recipe for part in TRIES.values() for name, recipe in part.items()}
    experiment_keys = {
        "name": "recipe-search",
        "base_model": "smollm2-135m",
        "target": "support.yaml",
        "suites": ["general.yaml"],
        "candidates": candidates,
        "gate": read(ROOT / "harness.yaml")["gate"],
    }
    dump(folder / "harness.yaml", experiment_keys)
    return folder / "harness.yaml"


def read(path: Path) -> dict[str, Any]:
    suite: dict[str, Any] = YAML(typ="safe").load(path)
    return suite


def read_suite(name: str) -> dict[str, Any]:
    """Read a shipped suite, with absolute paths of its files and unchanged limits."""
    suite = read(SUITES / f"{name}.yaml")
    for task in suite["tasks"]:
        task["data"] = {
            part: str(SUITES / value) if isinstance(value, str) else value
            for part, value in task["data"].items()
        }
    return suite


def dump(path: Path, value: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(dict(value), file)


def write_public_tasks(folder: Path) -> Path:
    """Write the experiment on public tasks, none of which resembles the prompts of replay."""
    tasks = [{"lm_eval": name, "limit": N_PUBLIC, "chance": chance} for name, chance in PUBLIC.items()]
    dump(folder / "public.yaml", {"name": "public", "role": "capability", "tasks": tasks})
    on_public = {**read(folder / "harness.yaml"), "name": "recipe-on-public-tasks", "suites": ["public.yaml"]}
    dump(folder / "on_public.yaml", on_public)
    return folder / "on_public.yaml"


# The page


def page(report: ExperimentReport, on_public: ExperimentReport | None) -> str:
    """Write every try, the best first, and the scores on public tasks of those that the quickstart trains."""
    n_trained = sum(1 for facts in report.facts if facts.trained)
    about = (
        f"{len(report.facts)} tries on smollm2-135m: {n_trained} fine-tunes (a recipe with retrieval counts again) and "
        f"{len(report.facts) - n_trained} prompts. Judged only on validation: the target on the {report.facts[0].target.n} "
        "items of its validation split, forgetting on items of the general suite that its limits leave out. "
        "The verdict is the gate's, with the quickstart's margins on these fewer items."
    )
    lines = ["# The search for the quickstart's recipe", "", about, ""]
    lines += [
        "| try | target EM | forgetting (macro) | largest loss of a task | verdict |",
        "|---|---|---|---|---|",
    ]
    lines += [_row(report, facts) for facts in _sort_by_score(report)]
    if on_public:
        lines += ["", "## Public tasks", "", _PUBLIC_SAID, ""]
        tasks = list(dict.fromkeys(c.task for c in next(iter(on_public.comparisons.values()))))
        lines += ["| try | mean | " + " | ".join(tasks) + " |", "|---" * (2 + len(tasks)) + "|"]
        lines += [
            _format_public_row(on_public, facts, tasks)
            for facts in on_public.facts
            if facts.label in on_public.comparisons
        ]
    machine = ", ".join(
        f"{key} {report.header[key]}" for key in ("device", "precision", "engine") if key in report.header
    )
    return "\n".join(
        [*lines, "", f"{machine}. `python -m reports.studies.recipe_search` makes this table again.", ""]
    )


_PUBLIC_SAID = f"Changes in points against the base on {N_PUBLIC} items per task of lm-eval, run once, after the choice."


def _sort_by_score(report: ExperimentReport) -> list[CandidateFacts]:
    scored = [facts for facts in report.facts if facts.target]
    return sorted(scored, key=lambda facts: -facts.target.score if facts.target else 0.0)


def _row(report: ExperimentReport, facts: CandidateFacts) -> str:
    target, verdict = facts.target, facts.verdict
    macro = verdict.macro if verdict and facts.trained else None
    primary = _select_primary(report.comparisons.get(facts.label, ()))
    worst = min(primary.values(), key=lambda c: c.delta, default=None)
    cells = [
        facts.label,
        formatting.interval(target.score, target.low, target.high) if target else formatting.UNKNOWN,
        formatting.points(macro.score, macro.low, macro.high) if macro else "base weights",
        f"{worst.task} {formatting.points(worst.delta, worst.low, worst.high)}"
        if worst and facts.trained
        else "",
        verdict.outcome if verdict and facts.trained else "",
    ]
    return "| " + " | ".join(cells) + " |"


def _format_public_row(report: ExperimentReport, facts: CandidateFacts, tasks: Sequence[str]) -> str:
    primary, macro = _select_primary(report.comparisons[facts.label]), facts.verdict and facts.verdict.macro
    mean = formatting.points(macro.score, macro.low, macro.high) if macro else formatting.UNKNOWN
    cells = [formatting.points(c.delta, c.low, c.high) for c in map(primary.__getitem__, tasks)]
    return f"| {facts.label} | {mean} | " + " | ".join(cells) + " |"


def _select_primary(comparisons: Sequence[Comparison]) -> dict[str, Comparison]:
    """Keep the primary metric of each task, which comes first."""
    return {c.task: c for c in reversed(comparisons)}


def main() -> None:
    """Run the missing parts of the search, and print its page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "studies" / "recipe_search")
    parser.add_argument("--only", choices=list(TRIES))
    options = parser.parse_args()
    path = prepare(options.folder)
    names = [name for part in ([options.only] if options.only else TRIES) for name in TRIES[part]]
    report = harness.compare(path, candidates=names, progress=TerminalProgress())
    on_public = None
    if os.environ.get("HARNESS_DATASETS_DIR") and not options.only:
        on_public = harness.compare(
            write_public_tasks(options.folder), candidates=[*CHOSEN], progress=TerminalProgress()
        )
    sys.stdout.write(page(report, on_public))


if __name__ == "__main__":
    main()
