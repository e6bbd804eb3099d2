"""From a file of rows to a folder in which `harness compare` runs as it is: what was seen, what is proposed.

Invariant: nothing is written before everything was read as `compare` will read it, and no file is
ever overwritten.
"""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness import plugins
from harness.config import json_schema
from harness.data import TaskItems, formats, load_task, readers
from harness.data.formats import Layout
from harness.data.readers import Row
from harness.errors import Problem, UserError, did_you_mean
from harness.formatting import counted
from harness.models.hub import NAMES as EMBEDDED
from harness.records import Example
from harness.spec import HUB, Task

Kind = Literal["labels", "question", "preference", "text"]

SUITES = ("general", "safety")
MOST_LABELS, ROWS_A_LABEL, LONGEST_LABEL = 100, 5, 60
LIMITS = {"train": 2000, "validation": 200, "test": 400}
MOST_SHOTS, LONGEST_SHOTS = 8, 3000  # the second in characters, all shots together
_SCHEMA = "harness.schema.json"
_UNUSABLE_SHARE = 0.05
_FEWEST_TEST = 6  # with five, even five changes in one direction have p = .06 in a two-sided sign test

_QUESTIONS = ("prompt", "question", "text", "query", "input", "message", "utterance", "sentence", "content")
_ANSWERS = ("reference", "label", "intent", "category", "class", "target", "answer", "output", "response")
_GROUPS = ("article", "title", "document", "document_id", "doc_id", "conversation_id", "thread_id", "group")

_CHOSEN: dict[Kind, str] = {
    "labels": "a closed set of {n} labels, so they can be ranked, and a plain classifier can be trained",
    "question": "questions with a context; the contexts become documents, and retrieval meets closed book",
    "preference": "preference pairs; the chosen answer is the reference",
    "text": "free text; overlap with a reference says little of answers that are right in other words",
}


class Request(NamedTuple):
    """Request of the user: the folder, the rows, and what belongs to them.

    `prompt` and `reference` are columns or templates, `kind` is the kind of task, where they are not to be
    guessed.
    """

    folder: Path
    data: str
    base_model: str = EMBEDDED[0]
    pairs: str | None = None
    documents: str | None = None
    prompt: str | None = None
    reference: str | None = None
    kind: Kind | None = None


class Proposal(NamedTuple):
    """A task and its candidates, the texts of the files to write, what to say of them and warn of."""

    name: str
    kind: Kind
    task: Task
    candidates: dict[str, dict[str, Any]]
    files: dict[Path, str]
    said: tuple[str, ...]
    warnings: tuple[str, ...]


class _Seen(NamedTuple):
    """Rows, the layout they are in, the templates that read them, and the kind of task."""

    shown: str
    rows: list[Row]
    layout: Layout | None
    fields: dict[str, str]
    kind: Kind


def propose(request: Request) -> Proposal:
    """Look at the rows and propose a task, metrics and candidates; writes nothing.

    Raises:
        UserError: with every problem of the files, the base model and the folder at once.
    """
    content, problems = _read_all(request)
    name = _name_of(request.data)
    paths = request.folder / "harness.yaml", request.folder / "suites" / f"{name}.yaml"
    problems += [_there(path) for path in paths if path.exists()]
    problems += _unknown_model(request.base_model)
    seen: _Seen | None = None
    try:
        seen = _look(request, content) if content else None
    except UserError as error:
        problems += error.problems
    if problems or seen is None:
        raise UserError(problems)
    task, items = _check_task(_task(request, seen, name))
    candidates = _candidates(request, seen.kind, task, _n_shots(items.train))
    files = {
        paths[0]: _experiment_text(request, name, candidates),
        paths[1]: _suite_text(request, task, paths[1].parent),
        request.folder / _SCHEMA: json.dumps(json_schema(), indent=1) + "\n",
    }
    said, warnings = _sentences(seen, task, items, candidates), _warnings(items)
    return Proposal(name, seen.kind, task, candidates, files, tuple(said), tuple(warnings))


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
    if name is not None and name not in _NEEDS:
        raise UserError(
            Problem("--task", f"{name!r}", f"one of {', '.join(_NEEDS)}", did_you_mean(name, _NEEDS))
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
            read = readers.read(_absolute(path), "train")
        except UserError as error:
            problems += error.problems
        else:
            content = read if path == request.data else content
    return content, problems


def _look(request: Request, content: readers.Rows) -> _Seen:
    layout = formats.recognise(content.rows)
    fields = _fields(request, content, layout)
    task = Task.model_validate({"name": "seen", "data": {"invalid_rows": "drop"}, "fields": fields})
    examples = [sourced.example for sourced in _examples(task, content)]
    kind = request.kind or _kind(layout, content.rows, examples)
    if found := _misfit(kind, layout, content.rows, examples):
        step = "leave --task out, or name another kind"
        raise UserError(Problem(f"{content.shown}, --task {kind}", found, _NEEDS[kind], step))
    return _Seen(content.shown, content.rows, layout, fields, kind)


def _examples(task: Task, content: readers.Rows) -> list[Any]:
    from harness.data import examples as items

    return items.examples(task, content, items.Notes([], [])).examples


def _fields(request: Request, content: readers.Rows, layout: Layout | None) -> dict[str, str]:
    """Choose templates for the question, the answer and the cluster, as far as they are needed."""
    given = {"prompt": request.prompt, "reference": request.reference}
    fields = {key: _template(text) for key, text in given.items() if text}
    columns = _columns(content.rows)
    if layout is None and not (
        columns & {"prompt", "messages"} and columns & {"reference", "references", "constraints"}
    ):
        fields = _guess_columns(content, columns, fields)
    group = next(
        (name for name in _GROUPS if "cluster" not in columns and _groups_rows(content.rows, name)), None
    )
    if group and f"{{{group}}}" not in fields.values():
        fields["cluster"] = f"{{{group}}}"
    return fields


def _template(text: str) -> str:
    return text if "{" in text else f"{{{text}}}"


def _columns(content: Sequence[Row]) -> set[str]:
    """Return the fields that most rows fill with a text or a number."""
    names = {name for row in content for name in row.fields}
    filled = {name: sum(row.fields.get(name) not in (None, "") for row in content) for name in names}
    return {name for name, n in filled.items() if 2 * n > len(content)}


def _guess_columns(content: readers.Rows, columns: set[str], fields: dict[str, str]) -> dict[str, str]:
    """Guess which column asks and which answers, by their names; of two, the one that varies less answers."""
    plain = {
        c for c in columns if all(isinstance(r.fields.get(c), str | int | float | None) for r in content.rows)
    }
    asks = fields.get("prompt") or _by_name(plain, _QUESTIONS)
    answers = fields.get("reference") or _by_name(plain - {(asks or "").strip("{}")}, _ANSWERS)
    left = sorted(
        plain - {"id"} - {(asks or "").strip("{}"), (answers or "").strip("{}")},
        key=lambda column: len({str(row.fields.get(column)) for row in content.rows}),
    )
    if answers is None and left and len(left) + bool(asks) == 2:
        answers = f"{{{left.pop(0)}}}"
    if asks is None and len(left) == 1:
        asks = f"{{{left.pop()}}}"
    if asks and answers:
        return {**fields, "prompt": asks, "reference": answers}
    lacking = " and ".join(what for what, found in (("question", asks), ("answer", answers)) if not found)
    raise UserError(
        Problem(
            content.shown,
            f"columns {', '.join(sorted(columns)) or 'without values'}, none of them clearly the {lacking}",
            "a known layout, or to be told",
            "name the columns: --prompt COLUMN --reference COLUMN",
        )
    )


def _by_name(columns: set[str], known: Iterable[str]) -> str | None:
    lowered = {column.lower(): column for column in columns}
    return next((f"{{{lowered[name]}}}" for name in known if name in lowered), None)


def _groups_rows(content: Sequence[Row], name: str) -> bool:
    """Tell whether a field holds a few rows together: filled everywhere, repeated, of several values."""
    values = [row.fields.get(name) for row in content]
    if not all(isinstance(value, str | int) and value != "" for value in values):
        return False
    return 5 <= len(set(values)) <= 0.8 * len(values)


def _kind(layout: Layout | None, content: Sequence[Row], examples: Sequence[Example]) -> Kind:
    if layout is not None and layout.name == "preference":
        return "preference"
    contexts = sum(bool(row.fields.get("context")) for row in content)
    if layout is not None and layout.name == "question" and 2 * contexts > len(content):
        return "question"
    return "labels" if _label_set(examples) else "text"


_NEEDS: dict[Kind, str] = {
    "labels": "one label a row, of two different ones at least",
    "question": "question rows with a context",
    "preference": "rows with a chosen and a rejected answer",
    "text": "rows with a reference",
}


def _misfit(kind: Kind, layout: Layout | None, content: Sequence[Row], examples: Sequence[Example]) -> str:
    """Say what the rows lack for a kind of task; empty where they are of that kind."""
    form = layout.name if layout else "prompt and reference"
    if kind == "labels" and (len(_references(examples)) < 2 or any(len(e.references) > 1 for e in examples)):
        return f"{counted(len(_references(examples)), 'different reference')}, or several a row"
    if kind == "question" and not any(row.fields.get("context") for row in content):
        return f"{form} rows without a context"
    return f"{form} rows" if kind == "preference" and form != "preference" else ""


def _references(examples: Sequence[Example]) -> set[str]:
    return {reference for example in examples for reference in example.references}


def _label_set(examples: Sequence[Example]) -> tuple[str, ...]:
    """Return the labels, where the references are few, short and repeated; else nothing."""
    values = _references(examples)
    few = 2 <= len(values) <= min(MOST_LABELS, len(examples) // ROWS_A_LABEL)
    short = all(len(value) <= LONGEST_LABEL and "\n" not in value for value in values)
    return tuple(sorted(values)) if few and short and all(len(e.references) == 1 for e in examples) else ()


def _task(request: Request, seen: _Seen, name: str) -> dict[str, Any]:
    """Write the task as a mapping, paths absolute."""
    task: dict[str, Any] = {"name": name, "description": f"the rows of {Path(request.data).name}"}
    task["data"] = _data(request, seen)
    if seen.fields:
        task["fields"] = seen.fields
    content = readers.Rows(seen.shown, "row", seen.rows)
    reading = Task.model_validate({**task, "data": {"invalid_rows": "drop"}})
    examples = [sourced.example for sourced in _examples(reading, content)]
    references = [max(example.references, key=len) for example in examples]
    if seen.kind == "labels":
        labels = sorted(_references(examples))
        task |= {"labels": list(labels), "metrics": ["exact_match", "macro_f1"], "system": _choose(labels)}
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


def _data(request: Request, seen: _Seen) -> dict[str, Any]:
    data: dict[str, Any] = {"all": _absolute(request.data)}
    pairs = request.pairs or (request.data if seen.kind == "preference" else None)
    documents = request.documents or (request.data if seen.kind == "question" else None)
    data |= {key: _absolute(path) for key, path in (("pairs", pairs), ("documents", documents)) if path}
    return data | ({"limits": dict(LIMITS)} if len(seen.rows) > sum(LIMITS.values()) else {})


def _choose(labels: Sequence[str]) -> str:
    listed = ", ".join(labels)
    return (
        f"Reply with one of: {listed}." if len(listed) <= 800 else "Reply with the name of the category only."
    )


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


def _candidates(request: Request, kind: Kind, task: Task, n_shots: int) -> dict[str, dict[str, Any]]:
    """List every alternative that a decision asks for on such a task, the cheap ones first."""
    fixed, nearest = ({"few_shot": {"select": select, "shots": n_shots}} for select in ("fixed", "knn"))
    proposed = _methods(
        plugins.Situation(kind == "labels", bool(task.data.pairs), request.base_model in EMBEDDED)
    )
    on_rows = {name: recipe for name, recipe in proposed.items() if plugins.method(name).trains_on_rows}
    untrained = {name: recipe for name, recipe in proposed.items() if not plugins.method(name).trains}
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
    found |= on_rows
    if task.data.documents:
        found["hybrid"] = {"weights_of": next(iter(on_rows)), "prompting": rag}
    return found | proposed


def _n_shots(train: Sequence[Example]) -> int:
    """Choose as many shots, up to eight, as fit a prompt of some thousand tokens."""
    lengths = sorted(len(e.prompt) + max(map(len, e.references), default=0) for e in train)
    return max(1, min(MOST_SHOTS, LONGEST_SHOTS // max(lengths[int(0.9 * (len(lengths) - 1))], 1)))


def _methods(situation: plugins.Situation) -> dict[str, dict[str, Any]]:
    """Return a recipe of each method that proposes itself, by its name."""
    proposals = {name: plugins.method(name).proposal(situation) for name in plugins.names("methods")}
    return {name: {"method": name, **recipe} for name, recipe in proposals.items() if recipe is not None}


def _sentences(seen: _Seen, task: Task, items: TaskItems, candidates: Mapping[str, Any]) -> Iterator[str]:
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
                f"; {recipe['replay']:g} general rows replayed for each row" if "replay" in recipe else ""
            )
            yield f"{name}: {', '.join(tried)}, the better on validation is kept{replayed}"


def _warnings(items: TaskItems) -> Iterator[str]:
    if len(items.test) < _FEWEST_TEST:
        yield (
            f"only {counted(len(items.test), 'item')} for test: with fewer than {_FEWEST_TEST} no difference "
            "of two candidates can be shown with 95 % confidence; next: more rows, so that "
            "some hundred are for test"
        )


def _experiment_text(request: Request, name: str, candidates: Mapping[str, Any]) -> str:
    base = (
        str(Path(request.base_model).resolve()) if Path(request.base_model).is_dir() else request.base_model
    )
    lines = [
        f"# yaml-language-server: $schema={_SCHEMA}",
        f"# Proposed by harness init for {Path(request.data).name}; change what you know better.",
        f"name: {_flow(name)}",
        f"base_model: {_flow(base)}",
        f"target: {_flow(f'suites/{name}.yaml')}",
        f"suites: {_flow(list(SUITES))}            # what a fine-tune might forget",
        "candidates:",
        *(f"  {key}: {_flow(recipe)}" for key, recipe in candidates.items()),
        "gate: {macro: 0.02, each: 0.05}",
        "decide: {requests_per_month: 100000, horizon_months: 6}",
    ]
    return "\n".join(lines) + "\n"


def _suite_text(request: Request, task: Task, folder: Path) -> str:
    """Write the suite; files near the folder are named relative to it."""
    written = task.model_dump(exclude_defaults=True, mode="json")
    data = {
        k: _near(v, request, folder) if isinstance(v, str) and k in _FILES else v
        for k, v in written["data"].items()
    }
    lines = [f"name: {_flow(task.name)}", "role: target", "tasks:"]
    for i, (key, value) in enumerate({**written, "data": data}.items()):
        lines.append(f"{'  - ' if i == 0 else '    '}{key}: {_flow(value, width=100)}")
    return "\n".join(lines) + "\n"


_FILES = ("all", "pairs", "documents")


def _near(path: str, request: Request, folder: Path) -> str:
    around = request.folder.resolve()
    is_near = not path.startswith(HUB) and Path(path).is_relative_to(around.parent)
    return os.path.relpath(path, folder.resolve()) if is_near else path


def _absolute(path: str) -> str:
    return path if path.startswith(HUB) else str(Path(path).expanduser().resolve())


_BARE = re.compile(r"[A-Za-z][\w./-]*(?: [\w./-]+)*")
_MEANS_SOMETHING = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def _flow(value: Any, width: int = 0) -> str:
    """Write a value as YAML in one line; a long list is broken between its entries."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        entries = [_flow(entry) for entry in value]
        lines = _lines(entries, width) if width else [", ".join(entries)]
        return "[" + ",\n             ".join(lines) + "]"
    if isinstance(value, str) and _BARE.fullmatch(value) and value.lower() not in _MEANS_SOMETHING:
        return value
    return json.dumps(value, ensure_ascii=False)


def _lines(entries: Sequence[str], width: int) -> list[str]:
    lines: list[str] = []
    for entry in entries:
        if lines and len(lines[-1]) + len(entry) + 2 <= width:
            lines[-1] += f", {entry}"
        else:
            lines.append(entry)
    return lines


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
