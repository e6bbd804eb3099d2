"""Proposal of a task: its fields, metrics and limits, read once as a comparison will read it.

It also names the columns and parts of a set that are not read, and doubts about the task.
"""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from harness.data import OF_RATINGS, SPLITS, Notes, TaskItems, load_task, readers
from harness.data.columns import (
    CONTEXTS,
    column_options,
    columns_of,
    find_head,
    find_reading_roles,
    is_id,
    option_text,
)
from harness.data.edit.row_files import new_name
from harness.data.examples import FIELD, examples, pairs
from harness.data.multiple_choice import list_choice_columns
from harness.data.turns import defines_tools_alone
from harness.data.unused import Unused, find_unused
from harness.errors import Problem, UserError, as_argument, refuse_unreadable
from harness.experiment.scaffold.instruction import (
    PromptColumns,
    draft_instruction,
    is_rating,
    vary_instruction,
)
from harness.experiment.scaffold.proposal_files import STEPS
from harness.experiment.scaffold.recognition import (
    AnswerForm,
    Answers,
    RecognizedRows,
    Request,
    absolute,
    examples_of,
)
from harness.formatting import count
from harness.models.hub import ModelSource
from harness.records import Example
from harness.spec import HUB, Fields, Task

FEW, FOLDS = 300, 5  # rows that are tested in folds
_UNUSABLE_SHARE = 0.05
_LEAST_TOKENS, _MOST_TOKENS = 64, 256  # of an answer; a base that is only prompted needs a sentence to end


def propose_task(
    request: Request, seen: RecognizedRows, name: str, base: ModelSource | None
) -> tuple[dict[str, Any], list[str]]:
    """Write the task as a mapping, paths absolute, and the draft of its instruction in other words.

    Answers may be as long as the base's tokenizer says.
    """
    task: dict[str, Any] = {"name": name, "description": f"the rows of {Path(request.data).name}"}
    data: dict[str, Any] = {"all": absolute(request.data)}
    has_pairs = seen.kind == "preference" or seen.thumbs_down
    pairs = request.pairs or (request.data if has_pairs else None)
    documents = request.documents or (request.data if seen.kind == "question" else None)
    data |= {key: absolute(path) for key, path in (("pairs", pairs), ("documents", documents)) if path}
    data |= {"invalid_rows": "drop"} if seen.thumbs_down else {}  # they are no right answers
    most = STEPS[0]
    limits = {split: getattr(most, split) for split in SPLITS}
    task["data"] = data | ({"limits": limits} if len(seen.rows) > sum(limits.values()) else {})
    if seen.fields:
        task["fields"] = seen.fields
    content = readers.Rows(seen.shown, "row", seen.rows)
    reading = Task.model_validate({**task, "data": {"invalid_rows": "drop"}})
    sourced = examples_of(reading, content)
    if where := next((one.where for one in sourced if not one.example.references), ""):
        found, expected = "constraints and no reference", "an answer to show and to train on"
        step = "add references, or write a suite with metrics: [follows], on which nothing is trained"
        raise UserError(Problem(where, found, expected, step))
    examples = [one.example for one in sourced]
    if seen.layout and seen.layout.column:
        columns = PromptColumns(("messages",), "messages")
    elif seen.layout and seen.layout.name == "tokens and tags":
        columns = PromptColumns(("text",), "entities")
    else:
        names = dict.fromkeys(key for row in seen.rows for key in row.fields)
        roles = find_reading_roles(reading, seen.layout, names)
        shown = FIELD.findall(seen.fields.get("prompt", "")) or [c for c in names if c in roles.questions]
        answer = FIELD.findall(seen.fields.get("reference", "")) or roles.answers
        columns = PromptColumns(tuple(shown), next(iter(answer), ""))
    task |= _propose_answers(seen.answers, columns, examples, base)
    said = (m["content"] for example in examples for m in example.messages if m["role"] == "system")
    if request.instruction:
        return {**task, "system": request.instruction}, []
    if not all(map(defines_tools_alone, said)):  # rows say what to do themselves
        return task, []
    draft = draft_instruction(seen.answers, columns, examples)
    return {**task, "system": draft}, vary_instruction(draft, seen.answers)


def _propose_answers(
    answers: Answers, columns: PromptColumns, examples: Sequence[Example], base: ModelSource | None
) -> dict[str, Any]:
    references = [max(example.references, key=len) for example in examples]
    metrics = _METRICS[answers.form]
    if is_rating(columns, answers.labels):
        metrics = ["exact_match", *OF_RATINGS]
    elif answers.form == "sql" and find_spec("sqlglot"):
        metrics = ["sql_match", "token_f1"]
    elif answers.form in ("short", "long"):  # an overlap of words needs words of Latin
        letters = [sign for text in references[:200] for sign in text if sign.isalpha()]
        metrics = metrics if 2 * sum(sign < "ɐ" for sign in letters) >= len(letters) else ["chrf"]
    if answers.form == "choice":
        chance = fmean(1 / len(example.choices) for example in examples)
        return {"kind": "choice", "metrics": metrics, "chance": round(chance, 4)}
    whole = answers.form in ("labels", "calls", "json", "spans", "sql", "joined labels")
    proposed: dict[str, Any] = {"labels": list(answers.labels)} if answers.form == "labels" else {}
    proposed |= {"metrics": metrics, "max_new_tokens": _longest(references, base, 1.0 if whole else 0.95)}
    return proposed | ({"truncated_scores": True} if answers.form == "long" else {})


_METRICS: dict[AnswerForm, list[str]] = {
    "choice": ["accuracy", "bits_per_byte"],
    "labels": ["exact_match", "macro_f1"],
    "calls": ["tool_call", "token_f1"],
    "json": ["json_fields", "json_valid"],
    "spans": ["span_f1", "json_valid"],
    "reasoned": ["final_answer", "token_f1"],
    "joined labels": ["token_f1", "exact_match"],
    "sql": ["exact_match", "token_f1"],
    "number": ["exact_match", "token_f1"],  # to an overlap of words 1.5 is 15, a unit half an answer
    "short": ["token_f1", "exact_match"],
    "long": ["token_f1", "rouge"],
}


def _longest(references: Sequence[str], base: ModelSource | None, share: float) -> int:
    """Return half again the tokens of the longer answers, within `_LEAST_TOKENS` and `_MOST_TOKENS`."""
    lengths = sorted(count_tokens(references, base))
    longer = lengths[int(share * (len(lengths) - 1))]
    return min(_MOST_TOKENS, max(_LEAST_TOKENS, -(-3 * longer // 16) * 8))


def count_tokens(texts: Sequence[str], base: ModelSource | None) -> list[int]:
    """Count the tokens of texts by the base's tokenizer, whole; where it is not here, by their signs."""
    file = base.path / "tokenizer.json" if base else None
    if file is None or not file.is_file():
        # At most one token for three letters of English, and one for each other byte: byte-level BPE spends
        # up to a token on each byte of a script that it has seen little of (Petrov et al. 2023,
        # arXiv:2305.15425), and many tokenizers one on each digit.
        n_plain = [sum(s.isascii() and (s.isalpha() or s.isspace()) for s in text) for text in texts]
        return [-(-n // 3) + len(text.encode()) - n for n, text in zip(n_plain, texts, strict=True)]
    from tokenizers import Tokenizer

    with refuse_unreadable(file, "a file that save_pretrained wrote", "save or fetch the tokenizer again"):
        tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()  # a file may ask for both
    tokenizer.no_padding()
    encoded = tokenizer.encode_batch([*texts], add_special_tokens=False)
    return [len(one.ids) for one in encoded]


def check_task(task: dict[str, Any], *, has_thumbs: bool) -> tuple[Task, TaskItems, str]:
    """Read the data as `compare` will; a few rows that cannot be used are left out, and said.

    With `has_thumbs` an answer with a thumb can be used too. A task of a few rows is tested in folds, or the
    reason against it is returned too.

    Raises:
        UserError: more than a few rows cannot be used, or something else is wrong.
    """
    read_as = Task.model_validate(task)
    problems: Sequence[Problem] = ()
    try:
        items = load_task(read_as, 0)
    except UserError as error:
        problems = error.problems
        read_as = Task.model_validate({**task, "data": {**task["data"], "invalid_rows": "drop"}})
        try:
            items = load_task(read_as, 0)
        except UserError:
            raise error from None
    if problems or has_thumbs:
        content = readers.read(task["data"]["all"], "train")
        usable = {one.where for one in examples_of(read_as, content)}
        usable |= {one.where for one in pairs(read_as, content, Notes([], []))} if has_thumbs else set()
        n_rows, n_unusable = len(content.rows), len(content.rows) - len(usable)
        if n_unusable > _UNUSABLE_SHARE * n_rows:
            shown = readers.display_path(read_as.data.source("train") or "")
            named, usual = read_as.fields, Fields()
            columns = option_text(named.prompt, usual.prompt), option_text(named.reference, usual.reference)
            new = new_name(shown, "clean")
            command = ["harness", "data", "clean", shown, *column_options(*columns), "--out", new]
            found = f"{n_unusable:,} of {n_rows:,} rows that cannot be used"
            step = f"{shlex.join(command)}, then --data {as_argument(new)}"
            raise UserError([*problems, Problem(shown, found, "fewer than one in twenty", step)])
    if sum(len(getattr(items, split)) for split in SPLITS) >= FEW:
        return read_as, items, ""
    folded = read_as.model_copy(update={"data": read_as.data.model_copy(update={"folds": FOLDS})})
    try:
        return folded, load_task(folded, 0), ""
    except UserError as error:
        return read_as, items, error.problems[0].found


_SPLITS = ("split", "subset", "partition", "set", "dataset_split")
_PARTS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval"}


def list_unused(task: Task, seen: RecognizedRows) -> Unused:
    """Find what a proposed task does not read of the rows."""
    content = readers.Rows(seen.shown, "row", seen.rows)
    return find_unused(task, content, examples(task, content, Notes([], []), problems=[]))


def describe_columns(task: Task, seen: RecognizedRows, unused: Unused) -> str:
    """Name every column with what becomes of it."""
    names = list(dict.fromkeys(name for row in seen.rows for name in row.fields))
    roles = find_reading_roles(task, seen.layout, names)
    has_choices = seen.layout is not None and seen.layout.name == "multiple choice"
    choices = (
        {name for row in seen.rows for name in list_choice_columns(row.fields)} if has_choices else set()
    )
    groups = columns_of(task.fields.cluster or "{cluster}", names)
    asks_more = len({*roles.questions} & {*names}) > 1
    unread = {*unused.columns, *unused.media, *(context.name for context in unused.contexts)}
    label = "label" if seen.answers.form == "labels" else "answer"

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
        is_empty = all(row.fields.get(name) in (None, "", [], {}) for row in seen.rows)
        return "id" if is_id(name) else "empty" if is_empty else "read as the layout says"

    columns_by_role: dict[str, list[str]] = {}
    for name in names:
        columns_by_role.setdefault(tell(name), []).append(name)
    named = FIELD.findall(f"{task.fields.prompt} {task.fields.reference}")
    columns = dict.fromkeys(name.partition(".")[0] for name in named if "." in name)
    held = [(c, value) for c in columns for row in seen.rows if isinstance(value := row.fields.get(c), dict)]
    parts = dict.fromkeys(f"{column}.{part}" for column, value in held for part in value)
    columns_by_role.setdefault("not used", []).extend(part for part in parts if part not in named)
    return "columns: " + "; ".join(f"{', '.join(of)} → {role}" for role, of in columns_by_role.items() if of)


def warn_of_unread(seen: RecognizedRows, task: Task, request: Request, unused: Unused) -> Iterator[str]:
    """Warn of columns that may ask or answer too, of labels that are numbers, and of parts of a split."""
    unread = list(unused.columns)
    is_guessed = seen.layout is None and "reference" in seen.fields and request.reference is None
    labels = {*seen.answers.labels} - {"none"}
    are_numbers = bool(labels) and all(re.fullmatch(r"-?\d+(\.\d+)?", label) for label in labels)
    if is_guessed and are_numbers and "within_one" not in task.metrics and not request.instruction:
        yield (
            "the labels are numbers, codes or steps of a rating, which tell a prompt nothing; next: write"
            " names in their place, name their column by --reference, or explain them by --instruction TEXT"
        )
    else:
        others = (other for other in unused.others if getattr(request, other.option) is None)
        yield from (f"{other.sentence}; next: where it does, {other.options}" for other in others)
    for column in unread:
        values = [str(row.fields.get(column)) for row in seen.rows]
        parts = list(dict.fromkeys(values))
        if column.lower() in _SPLITS and len(parts) > 1 and {part.lower() for part in parts} <= _PARTS:
            counted = ", ".join(f"{part} ({count(values.count(part))})" for part in parts)
            yield (
                f"the column {column!r} parts the rows into {counted}, and is not read: they are split "
                "again; next: to keep these parts, write each to a file, and name these as train, validation "
                "and test under data: of the suite"
            )
    if request.data.startswith(HUB) or Path(request.data).expanduser().is_dir():
        data = absolute(request.data)
        unread_parts = [part for part in readers.list_parts(data) if part in ("validation", "test")]
        if unread_parts:
            named_parts = ", ".join(f"{part}: {json.dumps(data)}" for part in ("train", *unread_parts))
            yield (
                f"{request.data}: its {' and '.join(unread_parts)} rows are not read, train is split again; "
                f"next: to keep these parts, write data: {{{named_parts}}} in the suite"
            )
