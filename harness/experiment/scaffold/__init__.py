"""Proposal of an experiment from a file of rows: a folder in which `harness compare` runs unchanged.

Invariant: before a file is written, everything is read as `compare` reads it. Files are never overwritten.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from harness import plugins
from harness.analysis.explain import USUAL_AMOUNTS
from harness.config import json_schema, read_suites
from harness.data import Notes, TaskItems, load_task, readers
from harness.data.column_roles import CONTEXTS, columns_of, find_head, find_reading_roles, is_id
from harness.data.examples import FIELD
from harness.data.examples import examples as read_examples
from harness.data.guessed_columns import NAME_THEM
from harness.data.row_forms import list_choice_columns
from harness.data.unused import Unused, find_unused, name_keys, name_media, offer_contexts
from harness.errors import CandidateFailed, Problem, UserError, as_argument, did_you_mean, gather, refuse
from harness.evaluation import wrap_prompt
from harness.experiment.scaffold import proposal_files, recognition
from harness.experiment.scaffold.method_choice import Resources, propose_candidates
from harness.experiment.scaffold.recognition import Request
from harness.experiment.scaffold.task_proposal import FOLDS, check_task, propose_task
from harness.formatting import count, pluralize, seconds
from harness.models import hardware, hub
from harness.models.chat_templates import render_chat
from harness.models.hub import NAMES as EMBEDDED
from harness.models.hub import ModelSource
from harness.spec import HUB, Task

_SHOWN = 900  # characters of the shown prompt
_FEWEST_TEST = 6  # five changes in one direction have p = .06 in a two-sided sign test
_TOO_FEW = (
    f"only {{}} for test: with fewer than {_FEWEST_TEST} no difference of two candidates can be shown with 95"
    " % confidence; next: more rows, so that some hundred are for test"
)

_FORMS: dict[recognition.AnswerForm, str] = {
    "choice": "multiple choice, where the choices of a row are ranked by their log-likelihoods",
    "labels": "a closed set of {n} labels, so they can be ranked, and a plain classifier can be trained",
    "joined labels": "several of {n} labels, joined by {separator!r}",
    "calls": "calls of tools",
    "json": "answers in JSON",
    "spans": "pieces of the text",
    "reasoned": "reasoning that ends in an answer",
    "sql": "SQL",
    "number": "numbers",
    "short": "short free text, which a judge may score too",
    "long": "free text, which a judge may score too",
}
_KINDS: dict[recognition.Kind, str] = {
    "question": "questions whose contexts become documents, to compare retrieval with closed book: ",
    "preference": "preference pairs, where the chosen answer is the reference: ",
}


class SetupProposal(NamedTuple):
    """A task and its candidates, the texts of the files to write, and lines and warnings to show."""

    name: str
    kind: recognition.Kind
    task: Task
    candidates: dict[str, dict[str, Any]]
    files: dict[Path, str]
    lines: tuple[str, ...]
    warnings: tuple[str, ...]


def propose(request: Request, resources: Resources | None = None) -> SetupProposal:
    """Propose a task, metrics and candidates from rows, for this machine by default; write nothing."""
    recognized, name = _recognise(request), _name_of(request)
    is_here = request.base_model in EMBEDDED or Path(request.base_model).expanduser().is_dir()
    base = hub.resolve(request.base_model, unpacks=False, where="--base-model") if is_here else None
    if resources is None:
        machine = hardware.probe(shape=hub.shape(base) if base else None)
        resources = Resources(machine, hardware.memory(machine.device))
    proposed, instructions = propose_task(request, recognized, name, base)
    task, items, unfolded = check_task(proposed, has_thumbs=bool(recognized.thumbs_down))
    choice, candidates = propose_candidates(recognized.kind, items, task, base, resources, instructions)
    gate = proposal_files.propose_gate(proposal_files.load_proposal(request, task, candidates).experiment)
    trial = ", the embedded model, which is for trying; --base-model NAME takes your own"
    named_base = f"base: {request.base_model}{trial if request.base_model in EMBEDDED else ''}"
    remarks, late = [named_base, f"{choice.name}: {choice.why}"], [choice.warning]
    if choice.others:
        to_add = "to try one, write it below candidates, as spectrum: spectrum"
        remarks.append(f"other trainings that fit and answer as fast as the base: {choice.others}; {to_add}")
    if request.minutes is not None and base is not None:
        bounded = proposal_files.bound_time(request, task, candidates, resources.machine, request.minutes)
        task, candidates, items = bounded.task, bounded.candidates, load_task(bounded.task, 0)
        within = f"bounded to {request.minutes:g} min"
        within = within if bounded.time_s <= 60 * request.minutes else "as short as these rows allow"
        cut = f", {within} by {', '.join(bounded.cuts)}; --minutes sets another bound" if bounded.cuts else ""
        remarks.append(f"time: about {seconds(bounded.time_s)} on this machine{cut}")
        if bounded.time_s > 60 * request.minutes:
            late.append(
                f"about {seconds(bounded.time_s)} on this machine, although {request.minutes:g} min were "
                "wanted: the suites and the base's size take most of it; next: a smaller --base-model, a"
                " faster machine, or --minutes"
            )
        if bounded.folds_s:
            unfolded = f"that takes about {seconds(bounded.folds_s)} on this machine"
    elif request.minutes is not None:
        remarks.append("time: not bounded, the base is not here yet; harness compare --dry-run estimates it")
    path, suite = _paths(request, name)
    on_gpu = resources.machine.device == "cuda"
    listed, public_text, sentence = proposal_files.propose_public(items, on_gpu=on_gpu)
    remarks.append(sentence)
    suites = (*proposal_files.SUITES, *([listed] if listed else []))
    files = {
        path: proposal_files.experiment_text(request, name, candidates, gate, remarks, suites),
        suite: proposal_files.suite_text(request, task, suite.parent),
        **({suite.with_name(f"{proposal_files.PUBLIC}.yaml"): public_text} if public_text else {}),
        request.folder / proposal_files.SCHEMA: json.dumps(json_schema(), indent=1) + "\n",
    }
    content = readers.Rows(recognized.shown, "row", recognized.rows)
    unused = find_unused(task, content, read_examples(task, content, Notes([], []), problems=[]))
    column_notes = filter(None, (_describe_columns(task, recognized, unused), name_keys(unused)))
    sentences = _sentences(recognized, task, items, candidates, unfolded)
    lines = *_show_prompt(task, items, base), *column_notes, *sentences, *remarks, gate[1]
    warnings = (
        *filter(None, [offer_contexts(unused), name_media(unused)]),
        *_warn_of_unread(recognized, task, request, unused),
        *([_TOO_FEW.format(pluralize(len(items.test), "item"))] if len(items.test) < _FEWEST_TEST else []),
        *filter(None, late),
    )
    return SetupProposal(name, recognized.kind, task, candidates, files, lines, warnings)


def _recognise(request: Request) -> recognition.RecognizedRows:
    problems, content = list[Problem](), None
    # Pairs and documents are read only to find problems.
    for file in filter(None, (request.data, request.pairs, request.documents)):
        try:
            file_rows = readers.read(recognition.absolute(file), "train")
        except UserError as error:
            problems += error.problems
        else:
            content = file_rows if file == request.data else content
    problems += [describe_existing_file(path) for path in _paths(request, _name_of(request)) if path.exists()]
    name = request.base_model
    is_here = name in EMBEDDED or Path(name).expanduser().is_dir()
    if not is_here and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        expected = "the embedded model's name, a folder that save_pretrained wrote, or org/name"
        hint = did_you_mean(name, EMBEDDED) if "/" not in name else "check the path"
        problems.append(Problem(f"--base-model {name}", "no such folder or hub id", expected, hint))
    recognized: recognition.RecognizedRows | None = None
    with gather(problems):
        recognized = recognition.look(request, content) if content else None
    if problems or recognized is None:
        command = f"harness init {as_argument(str(request.folder))} --data {as_argument(request.data)} "
        raise UserError([replace(p, next_step=p.next_step.replace(NAME_THEM, command)) for p in problems])
    return recognized


def _paths(request: Request, name: str) -> tuple[Path, Path]:
    return request.folder / "harness.yaml", request.folder / "suites" / f"{name}.yaml"


def write(proposal: SetupProposal) -> list[Path]:
    """Write the files of a proposal; return their paths."""
    refuse([describe_existing_file(path) for path in proposal.files if path.exists()])
    for path, text in proposal.files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(proposal.files)


def _show_prompt(task: Task, items: TaskItems, base: ModelSource | None) -> Iterator[str]:
    if task.system:
        yield f"instruction: {task.system}\n  (a draft that you know better; --instruction TEXT replaces it)"
    else:
        yield "instruction: none besides the rows' own; --instruction TEXT adds one"
    example = items.train[0]
    messages = wrap_prompt(example, task.system, None).messages
    text = "\n".join(f"{turn['role']}: {turn['content']}" for turn in messages)
    if base and not hub.is_packed(base) and hub.chat_template(base):
        with suppress(CandidateFailed):
            text = render_chat(hub.load_tokenizer(base), messages).text
    if len(text) > _SHOWN:
        text = f"{text[: _SHOWN * 3 // 4]} […] {text[-_SHOWN // 4 :]}"
    yield "\n  | ".join(["one prompt as the base reads it:", *text.splitlines()])
    if example.references:
        yield f"its right answer: {example.references[0]}"


def _sentences(
    recognized: recognition.RecognizedRows,
    task: Task,
    items: TaskItems,
    candidates: Mapping[str, Any],
    unfolded: str,
) -> Iterator[str]:
    layout = f"{recognized.layout.name} rows ({recognized.layout.form})" if recognized.layout else "rows"
    yield f"{recognized.shown}: {len(recognized.rows):,} {layout}"
    form = _FORMS[recognized.answers.form]
    form = form.format(n=len(recognized.answers.labels), separator=recognized.answers.separator)
    if "within_one" in task.metrics:
        form = form.replace("a closed set of", "ratings in").replace("labels", "steps")
    meaning = str(plugins.load("metrics", task.primary_metric).__doc__).partition("\n")[0].rstrip(".")
    yield f"task: {_KINDS.get(recognized.kind, '')}{form}; scored by {task.primary_metric}: {meaning}"
    by = f" by {recognized.fields['cluster'].strip('{}')}" if "cluster" in recognized.fields else ""
    if not by and any(example.cluster != example.id for example in items.train):
        by = " by context" if recognized.kind == "question" else " by cluster"
    drawn_note = " (drawn; raise limits: for more)" if task.data.limits.train else ""
    parts = f"{pluralize(len(items.train), 'row')} to train on, {len(items.validation):,} for validation"
    if task.data.folds:
        yield f"split{by}: {parts}; folds: {FOLDS}, each of the former is tested on by a training without it"
    else:
        yield f"split{by}: {parts}, {len(items.test):,} for test{drawn_note}"
    yield f"amount of data: {pluralize(len(items.train), 'training row')}. {USUAL_AMOUNTS}"
    if unfolded:
        yield f"few rows: folds: {FOLDS} in the suite would test on all of them; not set: {unfolded}"
    yield from items.removed
    if items.documents:
        yield f"documents: {len(items.documents):,} to retrieve from"
    if items.pairs:
        yield f"pairs: {len(items.pairs):,}"
    length = "" if task.kind == "choice" else f"; answers of at most {task.max_new_tokens} tokens"
    yield f"metrics: {', '.join(task.metrics)}{length}"
    yield f"candidates: {', '.join(candidates)}"
    for name, recipe in candidates.items():
        if swept := recipe.get("sweep"):
            tried = ", ".join(f"{len(values)} values of {key}" for key, values in swept.items())
            yield f"{name}: {tried}, the best on validation is kept"
        if kl := recipe.get("regularize", {}).get("kl"):
            penalty = "its training is penalised where its answers move away from the base's"
            yield f"{name}: {penalty} on {kl['rows']} general prompts"


def _describe_columns(task: Task, recognized: recognition.RecognizedRows, unused: Unused) -> str:
    """Name the role of every column."""
    names = list(dict.fromkeys(name for row in recognized.rows for name in row.fields))
    roles = find_reading_roles(task, recognized.layout, names)
    has_choices = recognized.layout is not None and recognized.layout.name == "multiple choice"
    rows = recognized.rows if has_choices else []
    choices = {name for row in rows for name in list_choice_columns(row.fields)}
    groups = columns_of(task.fields.cluster or "{cluster}", names)
    asks_more = len({*roles.questions} & {*names}) > 1
    unread = {*unused.columns, *unused.media, *(context.name for context in unused.contexts)}
    label = "label" if recognized.answers.form == "labels" else "answer"

    def tell(name: str) -> str:
        if name in roles.answers:
            return "question and answer" if name in roles.questions else label
        if name in choices:
            return "choice"
        if name in roles.questions:
            return "context" if asks_more and find_head(name) in CONTEXTS else "question"
        if name in groups:
            return "group, for the split"
        if name in unread:
            return "not used"
        is_empty = all(row.fields.get(name) in (None, "", [], {}) for row in recognized.rows)
        return "id" if is_id(name) else "empty" if is_empty else "read as the layout says"

    columns_by_role: dict[str, list[str]] = {}
    for name in names:
        columns_by_role.setdefault(tell(name), []).append(name)
    named_fields = FIELD.findall(f"{task.fields.prompt} {task.fields.reference}")
    columns = dict.fromkeys(name.partition(".")[0] for name in named_fields if "." in name)
    held = [(column, row.fields.get(column)) for column in columns for row in recognized.rows]
    parts = dict.fromkeys(f"{c}.{part}" for c, value in held if isinstance(value, dict) for part in value)
    columns_by_role.setdefault("not used", []).extend(part for part in parts if part not in named_fields)
    described = [f"{', '.join(names)} → {role}" for role, names in columns_by_role.items() if names]
    return f"columns: {'; '.join(described)}"


_SPLITS = ("split", "subset", "partition", "set", "dataset_split")
_PARTS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval"}


def _warn_of_unread(
    recognized: recognition.RecognizedRows, task: Task, request: Request, unused: Unused
) -> Iterator[str]:
    """Warn of other columns that may hold questions or answers, numeric labels, and ignored splits."""
    is_guessed = recognized.layout is None and "reference" in recognized.fields and request.reference is None
    labels = {*recognized.answers.labels} - {"none"}
    are_numbers = bool(labels) and all(re.fullmatch(r"-?\d+(\.\d+)?", label) for label in labels)
    if is_guessed and are_numbers and "within_one" not in task.metrics and not request.instruction:
        yield (
            "the labels are numbers, codes or steps of a rating, which tell a prompt nothing; next: write"
            " names in their place, name their column by --reference, or explain them by --instruction TEXT"
        )
    else:
        other_columns = (column for column in unused.others if getattr(request, column.option) is None)
        yield from (f"{column.sentence}; next: where it does, {column.options}" for column in other_columns)
    for column in unused.columns:
        values = [str(row.fields.get(column)) for row in recognized.rows]
        parts = list(dict.fromkeys(values))
        if column.lower() in _SPLITS and len(parts) > 1 and {part.lower() for part in parts} <= _PARTS:
            counted = ", ".join(f"{part} ({count(values.count(part))})" for part in parts)
            yield (
                f"the column {column!r} parts the rows into {counted}, and is not read: they are split "
                "again; next: to keep these parts, write each to a file, and name these as train, validation "
                "and test under data: of the suite"
            )
    if request.data.startswith(HUB) or Path(request.data).expanduser().is_dir():
        data = recognition.absolute(request.data)
        if unread_parts := [part for part in readers.list_parts(data) if part in ("validation", "test")]:
            named_parts = ", ".join(f"{part}: {json.dumps(data)}" for part in ("train", *unread_parts))
            yield (
                f"{request.data}: its {' and '.join(unread_parts)} rows are not read, train is split again; "
                f"next: to keep these parts, write data: {{{named_parts}}} in the suite"
            )


def _name_of(request: Request) -> str:
    """Name the task after the file or hub set, distinct from all tasks of the suites."""
    stem = request.data.removeprefix(HUB).split(":")[0].rstrip("/").rpartition("/")[2].split(".")[0]
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "task"
    suites = [s for s in read_suites(request.folder / "suites") if s.name in proposal_files.SUITES]
    taken_names = {proposal_files.PUBLIC, *(task.name for suite in suites for task in suite.tasks)}
    return f"{name}-target" if name in taken_names else name


def write_example(folder: Path) -> Path:
    """Write a small example file to edit; return its path."""
    path = folder / "example.csv"
    refuse([describe_existing_file(at) for at in (path, folder / "harness.yaml") if at.exists()])
    rows = [(text.format(thing), label) for label, *texts in _EXAMPLE for text in texts for thing in _THINGS]
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


# Example rows: messages to a tool library, by intent.
_THINGS = ("drill", "ladder", "tent", "sewing machine", "projector", "bicycle", "saw")
_EXAMPLE = (
    ("borrow", "May I have the {} from Friday on?", "I would like to take the {}."),
    ("return", "When do you take the {} back?", "I am bringing the {} tonight."),
    ("extend", "Can I keep the {} a week longer?", "I need the {} until Monday."),
    ("broken", "The {} does not work any more.", "A part of the {} came off."),
)


def describe_existing_file(path: Path) -> Problem:
    """Return the problem that a file would be overwritten."""
    step = "choose another folder, or move it away"
    return Problem(str(path), "a file that is there already", "a new file", step)
