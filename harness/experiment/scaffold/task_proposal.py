"""Proposal of a task: its fields, metrics and limits, read once as a comparison will read it.

It also names the columns, and parts of a set, that nothing reads though the task may depend on them. Only
columns outside the templates count; nothing is refused but choices that nobody is shown.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
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
from harness.formatting import count, pluralize
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
    """Propose what the form of answers says: the kind, the metrics (the first decides), and the length."""
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

    With `has_thumbs` a row can be used that is an answer with a thumb, up or down. A task of a few rows is
    tested in folds; where that cannot be, it stays as it is, and the reason is returned too.

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
            new = as_argument(new_name(shown, "clean"))
            named, usual = read_as.fields, Fields()
            columns = option_text(named.prompt, usual.prompt), option_text(named.reference, usual.reference)
            words = shlex.join(column_options(*columns))
            command = " ".join(
                filter(None, (f"harness data clean {as_argument(shown)}", words, f"--out {new}"))
            )
            found = f"{n_unusable:,} of {n_rows:,} rows that cannot be used"
            raise UserError(
                [
                    *problems,
                    Problem(shown, found, "fewer than one in twenty", f"{command}, then --data {new}"),
                ]
            )
    if sum(len(getattr(items, split)) for split in SPLITS) >= FEW:
        return read_as, items, ""
    folded = read_as.model_copy(update={"data": read_as.data.model_copy(update={"folds": FOLDS})})
    try:
        return folded, load_task(folded, 0), ""
    except UserError as error:
        return read_as, items, error.problems[0].found


_SPLITS = ("split", "subset", "partition", "set", "dataset_split")
_PARTS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval"}
_THUMBS = ("kto_tag", "label", "thumb", "thumbs_up")


def list_unused(task: Task, seen: RecognizedRows) -> Unused:
    """Find what a proposed task does not read of the rows."""
    content = readers.Rows(seen.shown, "row", seen.rows)
    return find_unused(task, content, examples(task, content, Notes([], []), problems=[]).examples)


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
    tells: dict[str, Callable[[str], bool]] = {
        "question and answer": lambda name: name in roles.answers and name in roles.questions,
        "label" if seen.answers.form == "labels" else "answer": lambda name: name in roles.answers,
        "choice": lambda name: name in choices,
        "context": lambda name: name in roles.questions and asks_more and find_head(name) in CONTEXTS,
        "question": lambda name: name in roles.questions,
        "group, for the split": lambda name: name in groups,
        "not used": lambda name: name in unread,
        "id": is_id,
        "empty": lambda name: all(row.fields.get(name) in (None, "", [], {}) for row in seen.rows),
    }
    found: dict[str, list[str]] = {}
    for name in names:
        role = next((role for role, tells_so in tells.items() if tells_so(name)), "read as the layout says")
        found.setdefault(role, []).append(name)
    named = FIELD.findall(f"{task.fields.prompt} {task.fields.reference}")
    columns = dict.fromkeys(name.partition(".")[0] for name in named if "." in name)
    held = [(c, value) for c in columns for row in seen.rows if isinstance(value := row.fields.get(c), dict)]
    parts = dict.fromkeys(f"{column}.{part}" for column, value in held for part in value)
    found.setdefault("not used", []).extend([part for part in parts if part not in named])
    found = {role: of for role, of in found.items() if of}
    return "columns: " + "; ".join(f"{', '.join(of)} → {role}" for role, of in found.items())


def warn_of_unread(seen: RecognizedRows, task: Task, request: Request, unused: Unused) -> Iterator[str]:
    """Warn of columns that may ask or answer too, names of labels, thumbs, or the parts of a split."""
    unread = list(unused.columns)
    is_guessed = seen.layout is None and "reference" in seen.fields and request.reference is None
    named = _names_of_labels(seen, task, unread) if is_guessed and not request.instruction else ()
    others = (other for other in unused.others if getattr(request, other.option) is None)
    yield from [*named] or (f"{other.said}; next: where it does, {other.options}" for other in others)
    for column in unread if not seen.thumbs_down else ():
        values = [str(value).lower() for value in _read_column(seen, column)]
        if column.lower() in _THUMBS and {*values} == {"true", "false"}:
            n = f"{count(values.count('false'))} of {pluralize(len(values), 'row')}"
            yield (
                f"{column!r} is false in {n}, whose answers are taken for right ones; next: where these are "
                "thumbs, name the columns prompt, completion and label"
            )
    for column in unread:
        values = _read_column(seen, column)
        parts = list(dict.fromkeys(map(str, values)))
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


def _read_column(seen: RecognizedRows, column: str) -> list[Any]:
    values = [row.fields.get(column) for row in seen.rows]
    return [] if any(value in (None, "") for value in values) else values


def _names_of_labels(seen: RecognizedRows, task: Task, unread: Sequence[str]) -> Iterator[str]:
    """Warn of labels that are numbers and no known rating, or signs, which tell a prompt nothing."""
    values = [str(value) for value in _read_column(seen, seen.answer_column)]
    for sign in (label for label in seen.answers.labels if not any(map(str.isalnum, label))):
        yield (
            f"the label {sign!r} of {pluralize(values.count(sign), 'row')} means nothing; next: "
            "delete these rows where it stands for no label, or say what it means: --instruction TEXT"
        )
    labels = {*seen.answers.labels} - {"none"}
    are_numbers = all(re.fullmatch(r"-?\d+(\.\d+)?", label) for label in labels)
    if not labels or not are_numbers or "within_one" in task.metrics:
        return
    named = (
        "the labels are numbers, codes or steps of a rating, which tell a prompt nothing of what they mean"
    )
    for column in unread:
        texts = [str(value) for value in _read_column(seen, column)]
        is_one_to_one = len({*zip(values, texts, strict=False)}) == len(labels) == len({*texts})
        if is_one_to_one and not any(map(str.isdecimal, texts)):
            yield f"{named}; next: --reference {shlex.quote(column)}, which names them"
            return
    yield f"{named}; next: write names in their place, or say what they mean: --instruction TEXT"
