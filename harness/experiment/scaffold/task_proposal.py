"""Proposal of a task: its fields, metrics and limits, read once as a comparison will read it."""

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from harness.data import SPLITS, Notes, TaskItems, load_task, readers
from harness.data.columns import column_options, option_text
from harness.data.edit import new_name
from harness.data.examples import pairs
from harness.data.formats import defines_tools_alone
from harness.errors import Problem, UserError, as_argument, refuse_unreadable
from harness.experiment.scaffold.recognition import (
    ROWS_A_LABEL,
    RecognizedRows,
    Request,
    absolute,
    are_calls,
    are_json,
    are_numbers,
    are_reasoned,
    examples_of,
    find_joined_labels,
    references_of,
)
from harness.experiment.scaffold.time_bound import STEPS
from harness.models.hub import ModelSource
from harness.records import Example, pieces
from harness.spec import Fields, Task

_UNUSABLE_SHARE = 0.05
_MOST_TOKENS = 256  # of an answer
_REASON = "Think step by step, then write the final answer on a line of its own."


def propose_task(
    request: Request, seen: RecognizedRows, name: str, base: ModelSource | None
) -> dict[str, Any]:
    """Write the task as a mapping, paths absolute; answers may be as long as the base's tokenizer says."""
    task: dict[str, Any] = {"name": name, "description": f"the rows of {Path(request.data).name}"}
    task["data"] = _data(request, seen)
    if seen.fields:
        task["fields"] = seen.fields
    content = readers.Rows(seen.shown, "row", seen.rows)
    reading = Task.model_validate({**task, "data": {"invalid_rows": "drop"}})
    examples = [sourced.example for sourced in examples_of(reading, content)]
    task |= _propose_answers(seen, examples, base)
    said = (m["content"] for example in examples for m in example.messages if m["role"] == "system")
    if not all(map(defines_tools_alone, said)):
        task.pop("system", None)  # rows say what to do themselves
    return task


def _propose_answers(
    seen: RecognizedRows, examples: Sequence[Example], base: ModelSource | None
) -> dict[str, Any]:
    """Propose what all answers have in common: kind, metrics, length, and a system message if one helps."""
    if seen.kind == "choice":
        chance = fmean(1 / len(example.choices) for example in examples)
        return {"kind": "choice", "metrics": ["accuracy", "bits_per_byte"], "chance": round(chance, 4)}
    references = [max(example.references, key=len) for example in examples]
    longest = partial(_longest, references, base)
    if seen.kind == "labels":
        labels = references_of(examples)
        proposed = {"labels": list(labels), "metrics": ["exact_match", "macro_f1"], "system": _choose(labels)}
        return proposed | {"max_new_tokens": longest(share=1.0)}
    if are_calls(references):
        return {"metrics": ["tool_call", "token_f1"], "max_new_tokens": longest(share=1.0)}
    if are_json(references):
        proposed = {"metrics": ["json_fields", "json_valid"], "system": "Reply with JSON and nothing else."}
        return proposed | {"max_new_tokens": longest(share=1.0)}
    if are_reasoned(references):
        proposed = {"metrics": ["final_answer", "token_f1"], "system": _REASON}
        return proposed | {"max_new_tokens": longest()}
    if joined := find_joined_labels(references, ROWS_A_LABEL):
        system = f"{_choose(joined.labels, 'all that apply')} Write {joined.separator!r} between them."
        proposed = {"metrics": ["token_f1", "exact_match"], "system": system}
        return proposed | {"max_new_tokens": longest(share=1.0)}
    short = _are_short(references)
    if seen.kind == "text" and short and are_numbers(references):
        metrics = ["exact_match", "token_f1"]  # to an overlap of words 1.5 is 15, a unit half an answer
    elif _is_latin(references):
        metrics = ["token_f1", "exact_match" if short else "rougeL"]
    else:
        metrics = ["chrf"]
    if short:
        system = "Answer with the answer only, in a few words."
        return {"metrics": metrics, "system": system, "max_new_tokens": longest()}
    return {"metrics": metrics, "max_new_tokens": longest(), "truncated_scores": True}


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


def _choose(labels: Sequence[str], which: str = "one") -> str:
    listed, name = ", ".join(labels), "name of the category" if which == "one" else "names of the categories"
    return f"Reply with {which} of: {listed}." if len(listed) <= 800 else f"Reply with the {name} only."


def _are_short(references: Sequence[str]) -> bool:
    """Tell whether nine of ten answers have a few words, and none has several lines."""
    n_words = sorted(len(pieces(reference)) for reference in references)
    return n_words[int(0.9 * (len(n_words) - 1))] <= 8 and not any("\n" in r.strip() for r in references)


def _is_latin(texts: Sequence[str]) -> bool:
    letters = [sign for text in texts[:200] for sign in text if sign.isalpha()]
    return 2 * sum(sign < "ɐ" for sign in letters) >= len(letters)


def _longest(references: Sequence[str], base: ModelSource | None, share: float = 0.95) -> int:
    """Return the tokens of the longer answers with some to spare, at most `_MOST_TOKENS`."""
    lengths = sorted(count_tokens(references, base))
    return min(_MOST_TOKENS, -(-(lengths[int(share * (len(lengths) - 1))] + 4) // 8) * 8)


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
