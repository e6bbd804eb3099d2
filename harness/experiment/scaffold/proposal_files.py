"""Files of a proposal as YAML, with the gate's margins and a bound on the time of a comparison.

Invariant: the written files load as proposed. With these margins no run starts with a warning about them, and
a model that lost nothing passes the mean in 90 % of cases as one of the fine-tunes. The time is the estimate
of `harness compare --dry-run`, from nothing on this machine; training rows are cut first.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, NamedTuple

from harness import config
from harness.analysis.seeds import family_of
from harness.analysis.significance import chance_of_an_equal_model, power_warnings
from harness.config import LoadedExperiment
from harness.data import SPLITS, TaskItems, load_task
from harness.errors import UserError
from harness.evaluation.languages import SPOKEN, find_language
from harness.evaluation.lm_eval import tasks as lm_eval_tasks
from harness.evaluation.session import join_items
from harness.experiment.cost_estimates import Estimates
from harness.experiment.plan import in_order, make_plan
from harness.experiment.preparation import Scope, prepare_session
from harness.experiment.scaffold.recognition import Request
from harness.formatting import pluralize
from harness.models.hardware import Machine
from harness.progress import SilentProgress
from harness.spec import HUB, Experiment, GatePolicy, ItemLimits, Recipe, Task

_PASSES = 0.9
_MEANS = (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1)
_TASKS = (0.05, 0.1, 0.15, 0.2, 0.3)


@cache
def _count_items(task: str) -> int:
    return len(load_task(Task.model_validate_json(task), 0).test)


def propose_gate(experiment: Experiment) -> tuple[GatePolicy, str]:
    """Choose the margins of the mean, each task and each safety task; return a sentence on them too."""
    gate, members = GatePolicy(), max(family_of(experiment).size, 1)
    n = {task.name: _count_items(task.model_dump_json()) for s in experiment.suites for task in s.tasks}
    capability = [suite for suite in experiment.suites if suite.role == "capability"]
    chance: float | None = None
    for margin in _MEANS:
        gate = gate.model_copy(update={"macro": margin})
        chance = chance_of_an_equal_model(capability, n, gate, members)
        if chance is None or chance >= _PASSES:
            break
    for key, suites in (("each", capability), ("safety", experiment.suites)):
        for margin in _TASKS:
            gate = gate.model_copy(update={key: margin})
            if not power_warnings(suites, n, gate, n_members=members):
                break
    if chance is None:
        return gate, "margins: nothing is judged of forgetting: no suite has a task that counts"
    among = f", as one of {members}," if members > 1 else ""
    macro, each, safety = (f"{100 * float(margin or 0):g}" for margin in (gate.macro, gate.each, gate.safety))
    return gate, (
        f"margins: a fine-tune may lose {macro} points on average over the suites, {each} on one task and"
        f" {safety} on one of safety, the smallest that their items can show; one that"
        f" lost nothing{among} passes the average in {100 * chance:.0f} % of cases, if the base is above"
        " chance on all of their tasks"
    )


SCHEMA = "harness.schema.json"
SUITES = ("general", "safety")


def experiment_text(
    request: Request,
    name: str,
    candidates: Mapping[str, Any],
    gate: tuple[GatePolicy, str] | None = None,
    remarks: Sequence[str] = (),
    suites: Sequence[str] = SUITES,
) -> str:
    """Return the text of harness.yaml; each remark becomes a comment above the candidates."""
    base = request.base_model
    base = str(Path(base).resolve()) if Path(base).is_dir() else base
    margins = gate[0].model_dump(include={"macro", "each", "safety"}) if gate else {}
    lines = [
        f"# yaml-language-server: $schema={SCHEMA}",
        f"# Proposed by harness init for {Path(request.data).name}; change what you know better.",
        f"name: {flow(name)}",
        f"base_model: {flow(base)}",
        f"target: {flow(f'suites/{name}.yaml')}",
        f"suites: {flow(list(suites))}            # what a fine-tune might forget",
        *(f"# {remark}" for remark in remarks),
        "candidates:                          # what is compared; `harness ls methods` lists more",
        *(line for key, recipe in candidates.items() for line in _write_entry(key, recipe, "  ")),
        *((f"# {gate[1]}", f"gate: {flow(margins)}") if gate else ()),
        "# Your volume: cost and break-even depend on it.",
        "decide: {requests_per_month: 100000, horizon_months: 6}",
    ]
    return "\n".join(lines) + "\n"


def suite_text(request: Request, task: Task, folder: Path) -> str:
    """Return the text of the suite; paths near the folder become relative."""
    written = task.model_dump(exclude_defaults=True, mode="json")
    data = written["data"]
    for key in (key for key in _FILES if isinstance(data.get(key), str) and not data[key].startswith(HUB)):
        if Path(data[key]).is_relative_to(request.folder.resolve().parent):
            data[key] = os.path.relpath(data[key], folder.resolve())
    lines = [f"name: {flow(task.name)}", "role: target", "tasks:"]
    for i, (key, value) in enumerate(written.items()):
        lines.append(f"{'  - ' if i == 0 else '    '}{key}: {flow(value, width=100)}")
    return "\n".join(lines) + "\n"


_FILES = ("all", "pairs", "documents")


def _write_entry(key: str, value: Any, indent: str) -> list[str]:
    if len(line := f"{indent}{key}: {flow(value)}") <= _WIDTH or not isinstance(value, dict | list):
        return [line]
    if isinstance(value, list):
        return [f"{indent}{key}:", *(f"{indent}  - {flow(entry)}" for entry in value)]
    inner = (_write_entry(name, inner_value, f"{indent}  ") for name, inner_value in value.items())
    return [f"{indent}{key}:", *(line for lines in inner for line in lines)]


_WIDTH = 200  # of a line; longer entries are lists of texts
_BARE = re.compile(r"[A-Za-z][\w./-]*(?: [\w./-]+)*")
_MEANS_SOMETHING = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def flow(value: Any, width: int = 0) -> str:
    """Write a value as YAML in one line; a long list is broken between its entries."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        lines: list[str] = []
        for entry in map(flow, value):
            if lines and (not width or len(lines[-1]) + len(entry) + 2 <= width):
                lines[-1] += f", {entry}"
            else:
                lines.append(entry)
        return "[" + ",\n             ".join(lines) + "]"
    if isinstance(value, str) and _BARE.fullmatch(value) and value.lower() not in _MEANS_SOMETHING:
        return value
    return json.dumps(value, ensure_ascii=False)


Candidates = Mapping[str, Mapping[str, Any]]


class BoundStep(NamedTuple):
    """Maximum rows per split, and whether sweeps keep all values and prompts all texts."""

    train: int
    validation: int
    test: int
    sweeps: bool
    prompts: bool = True

    def keeps(self, key: str) -> bool:
        """Tell whether all values of a swept key are tried."""
        return self.prompts if key == "system" else self.sweeps


STEPS = (
    BoundStep(2000, 200, 400, sweeps=True),
    BoundStep(1000, 200, 400, sweeps=True),
    BoundStep(500, 200, 400, sweeps=True),
    BoundStep(500, 100, 400, sweeps=False),
    BoundStep(250, 100, 400, sweeps=False),
    BoundStep(250, 50, 200, sweeps=False),
    BoundStep(120, 40, 100, sweeps=False, prompts=False),
)


class BoundedSetup(NamedTuple):
    """A task and its candidates within a bound, their time, the cuts, and the time with folds if left out."""

    task: Task
    candidates: dict[str, dict[str, Any]]
    time_s: float
    cuts: tuple[str, ...]
    folds_s: float = 0.0


def bound_time(
    request: Request, task: Task, candidates: Candidates, machine: Machine, minutes: float
) -> BoundedSetup:
    """Take the first step whose estimate is within the bound, or the last one."""
    steps = (STEPS[0], STEPS[0]._replace(sweeps=False)) if task.data.folds else STEPS
    loaded = load_proposal(request, task, candidates)
    session = replace(prepare_session(loaded, Scope(dry_run=True), SilentProgress()), machine=machine)
    unlimited = task.data.model_copy(update={"limits": ItemLimits()})
    whole = load_task(task.model_copy(update={"data": unlimited}), session.first_seed)
    sizes: dict[str, int] = {split: len(getattr(whole, split)) for split in SPLITS}
    for step in steps:
        limits: dict[str, int] = {split: n for split in SPLITS if (n := getattr(step, split)) < sizes[split]}
        data = task.data.model_copy(update={"limits": ItemLimits(**limits)})
        narrow = task.model_copy(update={"data": data})
        cuts = [f"{n:,} of {sizes[split]:,} {_ROWS[split]}" for split, n in limits.items()]
        bounded_candidates: dict[str, dict[str, Any]] = {}
        for name, recipe in candidates.items():
            sweep = recipe.get("sweep", {})
            swept = {key: values for key, values in sweep.items() if step.keeps(key)}
            cuts += [f"one {key} instead of {len(tried)}" for key, tried in sweep.items() if key not in swept]
            first = {key: values[0] for key, values in sweep.items() if key not in swept and key != "system"}
            bounded_candidates[name] = {key: value for key, value in recipe.items() if key != "sweep"}
            bounded_candidates[name] |= {"params": {**recipe.get("params", {}), **first}} if first else {}
            bounded_candidates[name] |= {"sweep": swept} if swept else {}
        recipes = {name: Recipe.model_validate(recipe) for name, recipe in bounded_candidates.items()}
        experiment = session.experiment.model_copy(update={"target": narrow})
        # Evenly spaced rows are as long as sampled ones.
        rows = {split: getattr(whole, split)[:: -(-sizes[split] // n)] for split, n in limits.items()}
        target = join_items(narrow, "target", narrow.name, replace(whole, **rows))
        bounded_session = replace(session, experiment=experiment, target=target).with_candidates(recipes)
        plan = make_plan(bounded_session, in_order(bounded_session.candidates, recipes))
        estimates = Estimates(bounded_session)
        time_s = sum(estimates.seconds(estimates.work(plan)).values())
        bounded = BoundedSetup(narrow, bounded_candidates, time_s, tuple(cuts))
        if time_s <= 60 * minutes:
            return bounded
    if not task.data.folds:
        return bounded
    once = task.model_copy(update={"data": task.data.model_copy(update={"folds": None})})
    return bound_time(request, once, candidates, machine, minutes)._replace(folds_s=bounded.time_s)


def load_proposal(request: Request, task: Task, candidates: Candidates) -> LoadedExperiment:
    """Load a proposal as a comparison does, from temporary files."""
    with TemporaryDirectory() as name:
        folder, at = Path(name), request._replace(folder=Path(name))
        (folder / "suites").mkdir()
        (folder / "suites" / f"{task.name}.yaml").write_text(suite_text(at, task, folder / "suites"), "utf-8")
        (folder / "harness.yaml").write_text(experiment_text(at, task.name, candidates), "utf-8")
        return config.load(folder / "harness.yaml")


_ROWS = {"train": "rows to train on", "validation": "for validation", "test": "for test"}


PUBLIC = "public"
_MOST_S = 3.0
_LIMIT = 300  # items of a task in another language
_KEYS = {"lm_eval", "limit", "num_fewshot", "primary", "chance", "margin"}


def propose_public(items: TaskItems, *, on_gpu: bool) -> tuple[str, str, str]:
    """Propose a suite of public tasks in the language of the rows, by default English.

    Returns the suite's name if harness.yaml lists it, the text of its file if it is new, and a sentence.
    """
    code = find_language(e.prompt for e in (*items.train, *items.validation, *items.test))
    language = SPOKEN.get(code or "en")
    if language is None:
        return "", "", f"public tasks: none are known in the language of the rows, “{code}”"
    shipped = config.read_suites(Path(os.devnull))  # without a folder, the shipped suites
    standard = next(suite for suite in shipped if suite.name == "standard")
    usual = [task.model_dump(include=_KEYS, exclude_defaults=True, mode="json") for task in standard.tasks]
    spoken = [{"lm_eval": n, "limit": _LIMIT, "chance": round(c, 3)} for n, c in language.tasks.items()]
    wanted_tasks: list[dict[str, Any]] = spoken or usual
    source, available = _find_data([str(task["lm_eval"]) for task in wanted_tasks])
    kept_tasks = [task for task in wanted_tasks if task["lm_eval"] in available] or wanted_tasks
    name = standard.name if kept_tasks == usual else PUBLIC
    lines = ["name: public", "role: capability", "tasks:", *(f"  - {flow(task)}" for task in kept_tasks)]
    text = "" if name == standard.name else "\n".join(lines) + "\n"
    names, n_items = ", ".join(t["lm_eval"] for t in kept_tasks), sum(t["limit"] for t in kept_tasks)
    tasks = f"{pluralize(len(kept_tasks), 'task')} of lm-eval in {language.name}: {names}; suites/{name}.yaml"
    tasks += "" if code else " (the language of the rows is not clear)"
    setting = f"harness compare 'suites=[general,safety,{name}]' asks them too; --dry-run prices them"
    if source and on_gpu:
        reason = f"listed, with data from {source}; they are not in the margins and the time above"
    elif source:
        reason = f"not listed, for on a CPU they take long ({n_items:,} items at most); {setting}"
    else:
        reason = (
            "not listed, for no hub, cache or mirror (HARNESS_DATASETS_DIR) of their data is reached, or"
            f" lm-eval is not installed; where they are, {setting}"
        )
    return name if source and on_gpu else "", text, f"public tasks: {tasks}; {reason}"


def _find_data(tasks: Sequence[str]) -> tuple[str, set[str]]:
    """Name the source of tasks' data (the hub, a mirror or the hub's cache), and the available tasks."""
    if find_spec("lm_eval") is None:
        return "", set()
    from huggingface_hub import constants, get_session

    answers: list[int] = []

    def ask() -> None:
        with suppress(Exception):
            answers.append(get_session().head(constants.ENDPOINT, timeout=_MOST_S).status_code)

    if not constants.HF_HUB_OFFLINE and os.environ.get("HF_DATASETS_OFFLINE", "0") in ("", "0"):
        # Name resolution has no timeout of its own.
        thread = Thread(target=ask, daemon=True)
        thread.start()
        thread.join(_MOST_S)
    if answers and answers[0] < 500:
        return "the hub", set(tasks)
    mirror, cache = lm_eval_tasks.datasets_folder(None), Path(constants.HF_HUB_CACHE)

    def is_here(task: str) -> bool:
        with suppress(UserError):
            for member in lm_eval_tasks.members(task, "init"):
                cached = cache / f"datasets--{member.dataset_path.replace('/', '--')}" / "snapshots"
                if lm_eval_tasks.local_copy(member, mirror):  # a copy may lack some of a group's subjects
                    lm_eval_tasks.load(member, None, mirror, trusted=False, where="init")
                elif not cached.is_dir():
                    return False
            return True
        return False

    available_tasks = set(filter(is_here, tasks)) if mirror or any(cache.glob("datasets--*")) else set()
    return ("the copies on this machine" if available_tasks else ""), available_tasks
