"""Proposal of an experiment from a file of rows: a folder in which `harness compare` runs unchanged.

Invariant: everything is read as `compare` will read it before a file is written; no file is ever overwritten.
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
from harness.data import TaskItems, load_task, readers
from harness.data.guessed_columns import NAME_THEM
from harness.data.unused import name_keys, name_media, offer_contexts
from harness.errors import CandidateFailed, Problem, UserError, as_argument, did_you_mean, gather, refuse
from harness.evaluation import wrap_prompt
from harness.experiment.scaffold.method_choice import Resources, describe_base, propose_candidates
from harness.experiment.scaffold.proposal_files import (
    PUBLIC,
    SCHEMA,
    SUITES,
    bound_time,
    experiment_text,
    load_proposal,
    propose_gate,
    propose_public,
    suite_text,
    time_sentence,
)
from harness.experiment.scaffold.recognition import AnswerForm, Kind, RecognizedRows, Request, absolute, look
from harness.experiment.scaffold.task_proposal import (
    FOLDS,
    check_task,
    describe_columns,
    list_unused,
    propose_task,
    warn_of_unread,
)
from harness.formatting import pluralize, seconds
from harness.models import hardware, hub
from harness.models.chat_templates import render_chat
from harness.models.hub import NAMES as EMBEDDED
from harness.models.hub import ModelSource
from harness.spec import HUB, Task

_SHOWN = 900  # characters of the prompt that is shown
_FEWEST_TEST = 6  # with five, even five changes in one direction have p = .06 in a two-sided sign test
_TOO_FEW = (
    f"only {{}} for test: with fewer than {_FEWEST_TEST} no difference of two candidates can be shown with 95"
    " % confidence; next: more rows, so that some hundred are for test"
)

_FORMS: dict[AnswerForm, str] = {
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
_KINDS: dict[Kind, str] = {
    "question": "questions whose contexts become documents, to compare retrieval with closed book: ",
    "preference": "preference pairs, where the chosen answer is the reference: ",
}


class SetupProposal(NamedTuple):
    """A task and its candidates, the texts of the files to write, what to say of them and warn of."""

    name: str
    kind: Kind
    task: Task
    candidates: dict[str, dict[str, Any]]
    files: dict[Path, str]
    said: tuple[str, ...]
    warnings: tuple[str, ...]


def propose(request: Request, here: Resources | None = None) -> SetupProposal:
    """Look at the rows and propose a task, metrics and candidates for a machine, this one; writes nothing."""
    seen, name = _recognise(request), _name_of(request)
    there = request.base_model in EMBEDDED or Path(request.base_model).expanduser().is_dir()
    base = hub.resolve(request.base_model, unpacks=False, where="--base-model") if there else None
    if here is None:
        machine = hardware.probe(shape=hub.shape(base) if base else None)
        here = Resources(machine, hardware.memory(machine.device))
    proposed, instructions = propose_task(request, seen, name, base)
    task, items, unfolded = check_task(proposed, has_thumbs=bool(seen.thumbs_down))
    choice, candidates = propose_candidates(seen.kind, items, task, base, here, instructions)
    gate = propose_gate(load_proposal(request, task, candidates).experiment)
    remarks, late = [describe_base(request.base_model), f"{choice.name}: {choice.why}"], [choice.warning]
    if request.minutes is not None and base is not None:
        bounded = bound_time(request, task, candidates, here.machine, request.minutes)
        task, candidates, items = bounded.task, bounded.candidates, load_task(bounded.task, 0)
        remarks.append(f"time: {time_sentence(bounded, request.minutes)}")
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
    public = propose_public(items, on_gpu=here.machine.device == "cuda")
    remarks.append(public.said)
    suites = (*SUITES, public.name) if public.listed else SUITES
    files = {
        path: experiment_text(request, name, candidates, gate, remarks, suites),
        suite: suite_text(request, task, suite.parent),
        **({suite.with_name(f"{PUBLIC}.yaml"): public.text} if public.text else {}),
        request.folder / SCHEMA: json.dumps(json_schema(), indent=1) + "\n",
    }
    unused = list_unused(task, seen)
    named = filter(None, (describe_columns(task, seen, unused), name_keys(unused)))
    sentences = _sentences(seen, task, items, candidates, unfolded)
    said = *_show_prompt(task, items, base), *named, *sentences, *remarks, gate[1]
    warnings = (
        *filter(None, [offer_contexts(unused), name_media(unused)]),
        *warn_of_unread(seen, task, request, unused),
        *([_TOO_FEW.format(pluralize(len(items.test), "item"))] if len(items.test) < _FEWEST_TEST else []),
        *filter(None, late),
    )
    return SetupProposal(name, seen.kind, task, candidates, files, said, warnings)


def _recognise(request: Request) -> RecognizedRows:
    problems: list[Problem] = []
    content = None
    # The other files are only read to find their problems.
    for file in filter(None, (request.data, request.pairs, request.documents)):
        try:
            read = readers.read(absolute(file), "train")
        except UserError as error:
            problems += error.problems
        else:
            content = read if file == request.data else content
    problems += [describe_existing_file(path) for path in _paths(request, _name_of(request)) if path.exists()]
    name = request.base_model
    is_here = name in EMBEDDED or Path(name).expanduser().is_dir()
    if not is_here and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        expected = "the embedded model's name, a folder that save_pretrained wrote, or org/name"
        hint = did_you_mean(name, EMBEDDED) if "/" not in name else "check the path"
        problems.append(Problem(f"--base-model {name}", "no such folder or hub id", expected, hint))
    seen: RecognizedRows | None = None
    with gather(problems):
        seen = look(request, content) if content else None
    if problems or seen is None:
        command = f"harness init {as_argument(str(request.folder))} --data {as_argument(request.data)} "
        raise UserError([replace(p, next_step=p.next_step.replace(NAME_THEM, command)) for p in problems])
    return seen


def _paths(request: Request, name: str) -> tuple[Path, Path]:
    return request.folder / "harness.yaml", request.folder / "suites" / f"{name}.yaml"


def write(proposal: SetupProposal) -> list[Path]:
    """Write the files of a proposal; returns their paths."""
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
    seen: RecognizedRows, task: Task, items: TaskItems, candidates: Mapping[str, Any], unfolded: str
) -> Iterator[str]:
    layout = f"{seen.layout.name} rows ({seen.layout.form})" if seen.layout else "rows"
    yield f"{seen.shown}: {len(seen.rows):,} {layout}"
    form = _FORMS[seen.answers.form].format(n=len(seen.answers.labels), separator=seen.answers.separator)
    if "within_one" in task.metrics:
        form = form.replace("a closed set of", "ratings in").replace("labels", "steps")
    meaning = str(plugins.load("metrics", task.primary_metric).__doc__).partition("\n")[0].rstrip(".")
    scored = f"scored by {task.primary_metric}: {meaning}"
    yield f"task: {_KINDS.get(seen.kind, '')}{form}; {scored}"
    by = f" by {seen.fields['cluster'].strip('{}')}" if "cluster" in seen.fields else ""
    if not by and any(example.cluster != example.id for example in items.train):
        by = " by context" if seen.kind == "question" else " by cluster"
    drawn = " (drawn; raise limits: for more)" if task.data.limits.train else ""
    parts = f"{pluralize(len(items.train), 'row')} to train on, {len(items.validation):,} for validation"
    if task.data.folds:
        yield f"split{by}: {parts}; folds: {FOLDS}, each of the former is tested on by a training without it"
    else:
        yield f"split{by}: {parts}, {len(items.test):,} for test{drawn}"
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
        if replay := recipe.get("replay"):
            yield f"{name}: general rows are replayed, {replay:g} for each training row"


def _name_of(request: Request) -> str:
    """Name the task by the file, or a hub set by its last part, unlike every task of the suites."""
    stem = request.data.removeprefix(HUB).split(":")[0].rstrip("/").rpartition("/")[2].split(".")[0]
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-") or "task"
    suites = [suite for suite in read_suites(request.folder / "suites") if suite.name in SUITES]
    taken = {PUBLIC, *(task.name for suite in suites for task in suite.tasks)}
    return f"{name}-target" if name in taken else name


def write_example(folder: Path) -> Path:
    """Write the rows of a small example to edit; return their path."""
    path = folder / "example.csv"
    refuse([describe_existing_file(at) for at in (path, folder / "harness.yaml") if at.exists()])
    rows = [(text.format(thing), label) for label, *texts in _EXAMPLE for text in texts for thing in _THINGS]
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


# Example rows: messages to a tool library's desk, after what people want.
_THINGS = ("drill", "ladder", "tent", "sewing machine", "projector", "bicycle", "saw")
_EXAMPLE = (
    ("borrow", "May I have the {} from Friday on?", "I would like to take the {}."),
    ("return", "When do you take the {} back?", "I am bringing the {} tonight."),
    ("extend", "Can I keep the {} a week longer?", "I need the {} until Monday."),
    ("broken", "The {} does not work any more.", "A part of the {} came off."),
)


def describe_existing_file(path: Path) -> Problem:
    """Return the problem of a file that would be overwritten."""
    return Problem(
        str(path), "a file that is there already", "a new file", "choose another folder, or move it away"
    )
