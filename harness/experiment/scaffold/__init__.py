"""From a file of rows to a folder in which `harness compare` runs as it is: what was seen, what is proposed.

Invariant: nothing is written before everything was read as `compare` will read it, and no file is
ever overwritten.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness import plugins
from harness.config import json_schema
from harness.data import SPLITS, TaskItems, load_task, readers
from harness.decision import USUAL_AMOUNTS
from harness.errors import Problem, UserError, did_you_mean
from harness.evaluation import costs
from harness.experiment.scaffold.method_choice import Choice, Resources, choose_method
from harness.experiment.scaffold.recognition import (
    NEEDS,
    Kind,
    Request,
    Seen,
    absolute,
    examples_of,
    look,
    references_of,
)
from harness.experiment.scaffold.time_bound import STEPS, bound_time, time_sentence
from harness.experiment.scaffold.yaml_text import SCHEMA, experiment_text, suite_text
from harness.formatting import pluralize, seconds
from harness.models import hardware, hub
from harness.models.hub import NAMES as EMBEDDED
from harness.models.hub import ModelSource
from harness.records import Example, parse_json
from harness.spec import HUB, Task

__all__ = [
    "Proposal",
    "Request",
    "Resources",
    "kind_named",
    "propose",
    "write",
    "write_example",
]

MOST_SHOTS, LONGEST_SHOTS = 8, 3000  # the second in characters, all shots together
SMALL_BASE = 1e9  # parameters
LONGEST_ROW = 4096  # tokens of a row to train on; a longer one is left out
_UNUSABLE_SHARE = 0.05
_FEWEST_TEST = 6  # with five, even five changes in one direction have p = .06 in a two-sided sign test

_CHOSEN: dict[Kind, str] = {
    "labels": "a closed set of {n} labels, so they can be ranked, and a plain classifier can be trained",
    "question": "questions with a context; the contexts become documents, and retrieval meets closed book",
    "preference": "preference pairs; the chosen answer is the reference",
    "text": "free text; overlap with a reference says little of answers that are right in other words",
}


class Proposal(NamedTuple):
    """A task and its candidates, the texts of the files to write, what to say of them and warn of."""

    name: str
    kind: Kind
    task: Task
    candidates: dict[str, dict[str, Any]]
    files: dict[Path, str]
    said: tuple[str, ...]
    warnings: tuple[str, ...]


def propose(request: Request, here: Resources | None = None) -> Proposal:
    """Look at the rows and propose a task, metrics and candidates for a machine, this one; writes nothing.

    Raises:
        UserError: with every problem of the files, the base model and the folder at once.
    """
    seen, name = _recognise(request), _name_of(request.data)
    task, items = _check_task(_task(request, seen, name))
    here, base = here or _this_machine(), _base(request.base_model)
    choice, candidates = _candidates(request, seen.kind, items, task, base, here)
    remarks, late = [f"{choice.name}: {choice.why}"], [choice.warning]
    if request.minutes is not None and base is not None:
        bounded = bound_time(request, task, candidates, here.machine, request.minutes)
        task, candidates, items = bounded.task, bounded.candidates, load_task(bounded.task, 0)
        remarks.append(f"time: {time_sentence(bounded, request.minutes)}")
        late.append(_too_long(bounded.time_s, request.minutes))
    elif request.minutes is not None:
        remarks.append("time: not bounded, the base is not here yet; harness compare --dry-run estimates it")
    files = _files(request, name, task, candidates, remarks)
    said = *_sentences(seen, task, items, candidates), *remarks
    warnings = *_warnings(items), *filter(None, late)
    return Proposal(name, seen.kind, task, candidates, files, said, warnings)


def _recognise(request: Request) -> Seen:
    """Recognise the rows, unless something forbids to go on.

    Raises:
        UserError: with every problem of the files, the base model and the folder at once.
    """
    content, problems = _read_all(request)
    problems += [_there(path) for path in _paths(request, _name_of(request.data)) if path.exists()]
    problems += _unknown_model(request.base_model)
    seen: Seen | None = None
    try:
        seen = look(request, content) if content else None
    except UserError as error:
        problems += error.problems
    if problems or seen is None:
        raise UserError(problems)
    return seen


def _paths(request: Request, name: str) -> tuple[Path, Path]:
    """Return where the experiment and its target are written."""
    return request.folder / "harness.yaml", request.folder / "suites" / f"{name}.yaml"


def _files(
    request: Request, name: str, task: Task, candidates: Mapping[str, Any], remarks: Sequence[str]
) -> dict[Path, str]:
    experiment, suite = _paths(request, name)
    return {
        experiment: experiment_text(request, name, candidates, remarks),
        suite: suite_text(request, task, suite.parent),
        request.folder / SCHEMA: json.dumps(json_schema(), indent=1) + "\n",
    }


def _this_machine() -> Resources:
    machine = hardware.probe()
    return Resources(machine, hardware.memory(machine.device))


def _base(name: str) -> ModelSource | None:
    """Find the base where it is on this machine; what would have to be fetched first is not known."""
    there = name in EMBEDDED or Path(name).expanduser().is_dir()
    return hub.resolve(name, unpacks=False, where="--base-model") if there else None


def _too_long(time_s: float, minutes: float) -> str:
    """Warn of a time that no smaller data bring below its bound."""
    if time_s <= 60 * minutes:
        return ""
    return (
        f"about {seconds(time_s)} on this machine, although {minutes:g} min were wanted: the suites and "
        "the base's size take most of it; next: a smaller --base-model, a faster machine, or --minutes"
    )


def write(proposal: Proposal) -> list[Path]:
    """Write the files of a proposal; returns their paths.

    Raises:
        UserError: one of them is there by now.
    """
    if there := [_there(path) for path in proposal.files if path.exists()]:
        raise UserError(there)
    for path, text in proposal.files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(proposal.files)


def kind_named(name: str | None) -> Kind | None:
    """Return the kind of task that a user named; None where none was.

    Raises:
        UserError: there is no such kind.
    """
    if name is not None and name not in NEEDS:
        raise UserError(
            Problem("--task", f"{name!r}", f"one of {', '.join(NEEDS)}", did_you_mean(name, NEEDS))
        )
    return name


def write_example(folder: Path) -> Path:
    """Write rows of a small example, to be edited; returns their path.

    Raises:
        UserError: the folder holds an experiment or such rows already.
    """
    path = folder / "example.csv"
    if there := [_there(at) for at in (path, folder / "harness.yaml") if at.exists()]:
        raise UserError(there)
    rows = [
        (form.format(thing), label)
        for label, forms in _EXAMPLE.items()
        for form in forms
        for thing in _THINGS
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


# The counter of a library for tools: what people write, by what they want.
_THINGS = ("drill", "ladder", "tent", "sewing machine", "projector")
_EXAMPLE = {
    "borrow": (
        "May I have the {} from Friday on?",
        "Is the {} free this weekend?",
        "I would like to take the {}.",
    ),
    "return": ("When do you take the {} back?", "I am bringing the {} tonight.", "Where do I leave the {}?"),
    "extend": (
        "Can I keep the {} a week longer?",
        "I need the {} until Monday.",
        "More time with the {}, please.",
    ),
    "broken": (
        "The {} does not work any more.",
        "A part of the {} came off.",
        "Your {} was damaged when I got it.",
    ),
}


def _read_all(request: Request) -> tuple[readers.Rows | None, list[Problem]]:
    """Read the rows, and the other files for their problems alone."""
    problems: list[Problem] = []
    content = None
    for path in filter(None, (request.data, request.pairs, request.documents)):
        try:
            read = readers.read(absolute(path), "train")
        except UserError as error:
            problems += error.problems
        else:
            content = read if path == request.data else content
    return content, problems


def _task(request: Request, seen: Seen, name: str) -> dict[str, Any]:
    """Write the task as a mapping, paths absolute."""
    task: dict[str, Any] = {"name": name, "description": f"the rows of {Path(request.data).name}"}
    task["data"] = _data(request, seen)
    if seen.fields:
        task["fields"] = seen.fields
    content = readers.Rows(seen.shown, "row", seen.rows)
    reading = Task.model_validate({**task, "data": {"invalid_rows": "drop"}})
    examples = [sourced.example for sourced in examples_of(reading, content)]
    references = [max(example.references, key=len) for example in examples]
    if seen.kind == "labels":
        labels = sorted(references_of(examples))
        task |= {"labels": list(labels), "metrics": ["exact_match", "macro_f1"], "system": _choose(labels)}
        return task | {"max_new_tokens": _tokens(references, share=1.0)}
    if all(map(_is_json, references)):
        task |= {"metrics": ["token_f1", "json_valid"], "system": "Reply with JSON and nothing else."}
        return task | {"max_new_tokens": _tokens(references, share=1.0)}
    short = sorted(len(r.split()) for r in references)[int(0.9 * (len(references) - 1))] <= 8
    task["metrics"] = (
        ["chrf"] if not _is_latin(references) else ["token_f1", "exact_match" if short else "rougeL"]
    )
    if short:
        return task | {
            "system": "Answer with the answer only, in a few words.",
            "max_new_tokens": _tokens(references),
        }
    return task | {"max_new_tokens": _tokens(references), "truncated_scores": True}


def _data(request: Request, seen: Seen) -> dict[str, Any]:
    data: dict[str, Any] = {"all": absolute(request.data)}
    pairs = request.pairs or (request.data if seen.kind == "preference" else None)
    documents = request.documents or (request.data if seen.kind == "question" else None)
    data |= {key: absolute(path) for key, path in (("pairs", pairs), ("documents", documents)) if path}
    most = STEPS[0]
    limits = {split: getattr(most, split) for split in SPLITS}
    return data | ({"limits": limits} if len(seen.rows) > sum(limits.values()) else {})


def _choose(labels: Sequence[str]) -> str:
    listed = ", ".join(labels)
    return (
        f"Reply with one of: {listed}." if len(listed) <= 800 else "Reply with the name of the category only."
    )


def _is_json(text: str) -> bool:
    """Tell whether a text is a JSON object or list."""
    try:
        return isinstance(parse_json(text), dict | list)
    except ValueError:
        return False


def _is_latin(texts: Sequence[str]) -> bool:
    letters = [sign for text in texts[:200] for sign in text if sign.isalpha()]
    return 2 * sum(sign < "ɐ" for sign in letters) >= len(letters)


def _tokens(references: Sequence[str], share: float = 0.95) -> int:
    """Allow for the longer answers: three characters a token in Latin script, one in others."""
    per_token = 3 if _is_latin(references) else 1
    longest = sorted(map(len, references))[int(share * (len(references) - 1))]
    return min(256, -(-(longest // per_token + 4) // 8) * 8)


def _check_task(task: dict[str, Any]) -> tuple[Task, TaskItems]:
    """Read the data as `compare` will; a few rows that cannot be used are left out, and said.

    Raises:
        UserError: more than a few rows cannot be used, or something else is wrong.
    """
    strict = Task.model_validate(task)
    try:
        return strict, load_task(strict, 0)
    except UserError as error:
        lenient = Task.model_validate({**task, "data": {**task["data"], "invalid_rows": "drop"}})
        n_rows = len(readers.read(task["data"]["all"], "train").rows)
        try:
            items = load_task(lenient, 0)
        except UserError:
            raise error from None
        limits = {**task, "data": {**lenient.data.model_dump(), "limits": {}}}
        whole = load_task(Task.model_validate(limits), 0)
        if len(whole.train) + len(whole.validation) + len(whole.test) < (1 - _UNUSABLE_SHARE) * n_rows:
            raise
        return lenient, items


def _candidates(
    request: Request, kind: Kind, items: TaskItems, task: Task, base: ModelSource | None, here: Resources
) -> tuple[Choice, dict[str, dict[str, Any]]]:
    """List every alternative that a decision asks for on such a task, the cheap ones first."""
    n_shots = _n_shots(items.train)
    fixed, nearest = ({"few_shot": {"select": select, "shots": n_shots}} for select in ("fixed", "knn"))
    is_small = base is not None and base.n_parameters < SMALL_BASE
    proposed = _methods(plugins.Situation(kind == "labels", bool(task.data.pairs), is_small))
    on_rows = {name: recipe for name, recipe in proposed.items() if plugins.method(name).trains_on_rows}
    untrained = {name: recipe for name, recipe in proposed.items() if not plugins.method(name).trains}
    longest = max(costs.training([e], 1).trained for e in items.train)
    on_rows = {name: _with_room(name, recipe, longest) for name, recipe in on_rows.items()}
    choice = choose_method(on_rows, base, here, longest)
    others = {name: recipe for name, recipe in proposed.items() if name not in on_rows}
    found: dict[str, dict[str, Any]] = {
        "prompt": {"prompting": "zero_shot"},
        "fixed": {"prompting": fixed},
        "knn": {"prompting": nearest},
    }
    if kind == "labels":
        found["ranked"] = {"prompting": nearest, "answer": "rank"}
    found |= untrained
    rag = {"rag": {"retriever": "bm25", "top_k": 2}}
    if task.data.documents:
        found["rag"] = {"prompting": rag}
    found[choice.name] = on_rows[choice.name]
    if task.data.documents:
        found["hybrid"] = {"weights_of": choice.name, "prompting": rag}
    return choice, found | others


def _with_room(name: str, recipe: dict[str, Any], longest: int) -> dict[str, Any]:
    """Let a training take the longest row, by an estimate with a quarter to spare, where it would drop it."""
    params = recipe.get("params", {})
    room = min(-(-longest * 5 // 4 // 256) * 256, LONGEST_ROW)
    if room <= plugins.method(name).params(**params).max_length:
        return recipe
    return {**recipe, "params": {**params, "max_length": room}}


def _n_shots(train: Sequence[Example]) -> int:
    """Choose as many shots, up to eight, as fit a prompt of some thousand tokens."""
    lengths = sorted(len(e.prompt) + max(map(len, e.references), default=0) for e in train)
    return max(1, min(MOST_SHOTS, LONGEST_SHOTS // max(lengths[int(0.9 * (len(lengths) - 1))], 1)))


def _methods(situation: plugins.Situation) -> dict[str, dict[str, Any]]:
    """Return a recipe of each method that proposes itself, by its name."""
    proposals = {name: plugins.method(name).proposal(situation) for name in plugins.names("methods")}
    return {name: {"method": name, **recipe} for name, recipe in proposals.items() if recipe is not None}


def _sentences(seen: Seen, task: Task, items: TaskItems, candidates: Mapping[str, Any]) -> Iterator[str]:
    layout = (
        f"{seen.layout.name} rows ({seen.layout.form})" if seen.layout else "rows of prompt and reference"
    )
    if {"prompt", "reference"} <= seen.fields.keys():
        layout = f"rows that ask {seen.fields['prompt']} and answer {seen.fields['reference']}"
    yield f"{seen.shown}: {len(seen.rows):,} {layout}"
    yield f"task: {_CHOSEN[seen.kind].format(n=len(task.labels))}"
    by = f" by {seen.fields['cluster'].strip('{}')}" if "cluster" in seen.fields else ""
    if not by and any(example.cluster != example.id for example in items.train):
        by = " by context" if seen.kind == "question" else " by cluster"
    drawn = " (drawn; raise limits: for more)" if task.data.limits.train else ""
    yield (
        f"split{by}: {len(items.train):,} rows to train on, {len(items.validation):,} for validation, "
        f"{len(items.test):,} for test{drawn}"
    )
    yield f"amount of data: {pluralize(len(items.train), 'row')} to train on. {USUAL_AMOUNTS}"
    yield from items.removed
    if items.documents:
        yield f"documents: {len(items.documents):,} to retrieve from"
    if items.pairs:
        used = candidates.keys() & set(plugins.methods(draws_from="pairs"))
        method = "" if used else "; no method of this version trains on them"
        yield f"pairs: {len(items.pairs):,}{method}"
    yield f"metrics: {', '.join(task.metrics)}; answers of at most {task.max_new_tokens} tokens"
    yield f"candidates: {', '.join(candidates)}"
    for name, recipe in candidates.items():
        tried = [
            f"{key} {' and '.join(f'{v:g}' for v in values)}"
            for key, values in recipe.get("sweep", {}).items()
        ]
        if tried:
            replayed = (
                f"; general rows are replayed, {recipe['replay']:g} for each row"
                if "replay" in recipe
                else ""
            )
            yield f"{name}: {', '.join(tried)}, the better on validation is kept{replayed}"


def _warnings(items: TaskItems) -> Iterator[str]:
    if len(items.test) < _FEWEST_TEST:
        yield (
            f"only {pluralize(len(items.test), 'item')} for test: with fewer than {_FEWEST_TEST} no "
            "difference of two candidates can be shown with 95 % confidence; next: more rows, so that "
            "some hundred are for test"
        )


def _name_of(data: str) -> str:
    """Name the task by the file, or a hub set by its last part."""
    stem = data.removeprefix(HUB).split(":")[0].rstrip("/").rpartition("/")[2].split(".")[0]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "task"


def _there(path: Path) -> Problem:
    return Problem(
        str(path), "a file that is there already", "a new file", "choose another folder, or move it away"
    )


def _unknown_model(name: str) -> Iterator[Problem]:
    """Refuse what can be neither an embedded model, nor a folder, nor a hub id."""
    if name in EMBEDDED or Path(name).expanduser().is_dir():
        return
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        expected = "the embedded model's name, a folder that save_pretrained wrote, or org/name"
        hint = did_you_mean(name, EMBEDDED) if "/" not in name else "check the path"
        yield Problem(f"--base-model {name}", "no such folder or hub id", expected, hint)
