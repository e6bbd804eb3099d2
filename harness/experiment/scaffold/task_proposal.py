"""Proposal of a task: its fields, metrics and limits, read once as a comparison will read it."""

import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

from harness.data import OF_RATINGS, SPLITS, Notes, TaskItems, load_task, readers
from harness.data.columns import column_options, find_reading_roles, option_text
from harness.data.edit import new_name
from harness.data.examples import FIELD, pairs
from harness.data.tools import defines_tools_alone
from harness.errors import Problem, UserError, as_argument, refuse_unreadable
from harness.experiment.scaffold.instruction import (
    PromptColumns,
    draft_instruction,
    is_rating,
    vary_instruction,
)
from harness.experiment.scaffold.recognition import (
    AnswerForm,
    Answers,
    RecognizedRows,
    Request,
    absolute,
    examples_of,
)
from harness.experiment.scaffold.time_bound import STEPS
from harness.models.hub import ModelSource
from harness.records import Example
from harness.spec import Fields, Task

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
    task["data"] = _data(request, seen)
    if seen.fields:
        task["fields"] = seen.fields
    content = readers.Rows(seen.shown, "row", seen.rows)
    reading = Task.model_validate({**task, "data": {"invalid_rows": "drop"}})
    examples = [sourced.example for sourced in examples_of(reading, content)]
    columns = _find_columns(reading, seen)
    task |= _propose_answers(seen.answers, columns, examples, base)
    said = (m["content"] for example in examples for m in example.messages if m["role"] == "system")
    if request.instruction:
        return {**task, "system": request.instruction}, []
    if not all(map(defines_tools_alone, said)):  # rows say what to do themselves
        return task, []
    draft = draft_instruction(seen.answers, columns, examples)
    return {**task, "system": draft}, vary_instruction(draft, seen.answers)


def _find_columns(reading: Task, seen: RecognizedRows) -> PromptColumns:
    """Find the columns that a task shows and the one that answers; of nested ones the part that is named."""
    if seen.layout and seen.layout.column:
        return PromptColumns(("messages",), "messages")
    if seen.layout and seen.layout.name == "tokens and tags":
        return PromptColumns(("text",), "entities")
    names = dict.fromkeys(name for row in seen.rows for name in row.fields)
    roles = find_reading_roles(reading, seen.layout, names)
    shown = FIELD.findall(seen.fields.get("prompt", "")) or [c for c in names if c in roles.questions]
    answer = FIELD.findall(seen.fields.get("reference", "")) or roles.answers
    return PromptColumns(tuple(shown), next(iter(answer), ""))


def _propose_answers(
    answers: Answers, columns: PromptColumns, examples: Sequence[Example], base: ModelSource | None
) -> dict[str, Any]:
    """Propose what all answers have in common: kind, metrics, labels and length."""
    metrics = choose_metrics(answers, columns, examples)
    if answers.form == "choice":
        chance = fmean(1 / len(example.choices) for example in examples)
        return {"kind": "choice", "metrics": metrics, "chance": round(chance, 4)}
    references = [max(example.references, key=len) for example in examples]
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


_RATING_METRICS = ["exact_match", *OF_RATINGS]


def choose_metrics(answers: Answers, columns: PromptColumns, examples: Sequence[Example]) -> list[str]:
    """Choose the metrics of answers by their form, the first one decides; overlap needs words of Latin."""
    if is_rating(columns, answers.labels):
        return _RATING_METRICS
    if answers.form == "sql" and find_spec("sqlglot"):
        return ["sql_match", "token_f1"]
    is_text = answers.form in ("short", "long")
    references = [max(example.references, key=len) for example in examples if example.references]
    letters = [sign for text in references[:200] for sign in text if sign.isalpha()]
    is_latin = 2 * sum(sign < "ɐ" for sign in letters) >= len(letters)
    return ["chrf"] if is_text and not is_latin else _METRICS[answers.form]


def _data(request: Request, seen: RecognizedRows) -> dict[str, Any]:
    data: dict[str, Any] = {"all": absolute(request.data)}
    has_pairs = seen.kind == "preference" or seen.thumbs_down
    pairs = request.pairs or (request.data if has_pairs else None)
    documents = request.documents or (request.data if seen.kind == "question" else None)
    data |= {key: absolute(path) for key, path in (("pairs", pairs), ("documents", documents)) if path}
    data |= {"invalid_rows": "drop"} if seen.thumbs_down else {}  # they are no right answers
    most = STEPS[0]
    limits = {split: getattr(most, split) for split in SPLITS}
    return data | ({"limits": limits} if len(seen.rows) > sum(limits.values()) else {})


def _longest(references: Sequence[str], base: ModelSource | None, share: float) -> int:
    """Return half again the tokens of the longer answers, within `_LEAST_TOKENS` and `_MOST_TOKENS`."""
    lengths = sorted(count_tokens(references, base))
    longer = lengths[int(share * (len(lengths) - 1))]
    return min(_MOST_TOKENS, max(_LEAST_TOKENS, -(-3 * longer // 16) * 8))


def count_tokens(texts: Sequence[str], base: ModelSource | None) -> list[int]:
    """Count the tokens of texts by the base's tokenizer, whole; where it is not here, by their signs."""
    file = base.path / "tokenizer.json" if base else None
    if file is None or not file.is_file():
        return [_guess_tokens(text) for text in texts]
    from tokenizers import Tokenizer

    with refuse_unreadable(file, "a file that save_pretrained wrote", "save or fetch the tokenizer again"):
        tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()  # a file may ask for both
    tokenizer.no_padding()
    encoded = tokenizer.encode_batch([*texts], add_special_tokens=False)
    return [len(one.ids) for one in encoded]


def _guess_tokens(text: str) -> int:
    """Guess how many tokens a text is at most: one for three letters of English, one for each other byte."""
    # Byte-level BPE spends up to a token on each byte of a script that it has seen little of (Petrov et al.
    # 2023, arXiv:2305.15425), and many tokenizers one on each digit.
    plain = sum(sign.isascii() and (sign.isalpha() or sign.isspace()) for sign in text)
    return -(-plain // 3) + len(text.encode()) - plain


def check_task(task: dict[str, Any], *, has_thumbs: bool) -> tuple[Task, TaskItems]:
    """Read the data as `compare` will; a few rows that cannot be used are left out, and said.

    With `has_thumbs` a row can be used that is an answer with a thumb, up or down.

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
            raise UserError([*problems, _many_unusable(read_as, n_unusable, n_rows)])
    return read_as, items


def fold_few(task: Task, items: TaskItems) -> tuple[Task, TaskItems, str]:
    """Test a task of a few rows in folds; where that cannot be, return it as it is, with the reason."""
    if sum(len(getattr(items, split)) for split in SPLITS) >= FEW:
        return task, items, ""
    folded = task.model_copy(update={"data": task.data.model_copy(update={"folds": FOLDS})})
    try:
        return folded, load_task(folded, 0), ""
    except UserError as error:
        return task, items, error.problems[0].found


def _many_unusable(task: Task, n: int, n_rows: int) -> Problem:
    """Phrase rows that cannot be used, more than a few, with the command that leaves them out."""
    shown = readers.display_path(task.data.source("train") or "")
    new = as_argument(new_name(shown, "clean"))
    named, usual = task.fields, Fields()
    columns = option_text(named.prompt, usual.prompt), option_text(named.reference, usual.reference)
    words = shlex.join(column_options(*columns))
    command = " ".join(filter(None, (f"harness data clean {as_argument(shown)}", words, f"--out {new}")))
    found = f"{n:,} of {n_rows:,} rows that cannot be used"
    return Problem(shown, found, "fewer than one in twenty", f"{command}, then --data {new}")
