"""Layouts of other tools' rows, recognised by their fields and read into our own layout.

Invariant: a file has the layout of most of its rows, and a row that does not fit it is refused; templates
under `fields:` take precedence.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

from harness.data import row_forms, text_files
from harness.data.text_files import Row, Rows, find_known_fields, is_object, read_flag, write_json
from harness.data.turns import (
    FIX_ROW,
    TAG_NAMES,
    TOOL_FIELDS,
    add_system,
    answer_places,
    find_fields,
    is_conversation,
    read_leniently,
    read_text,
    read_turns,
    spell_calls,
    text_of,
    user_turns,
)
from harness.errors import UserError
from harness.spec import Fields, Task

_CONTEXT = "Context:\n"
THUMB_DOWN = "an answer with a thumb down"
_OWN_ANSWER = {"reference", "references", "constraints"}


class Layout(NamedTuple):
    """Layout: its name, its fields in words, how to recognise it, and how to read a row.

    `reads` takes a row, and whether contexts are left to retrieval, and returns fields of our own layout.
    `column` holds a conversation. `asking` and `answering` are the columns of questions and answers if they
    do not depend on the file; `is_text` says that one column is the whole question.
    """

    name: str
    form: str
    fits: Callable[[set[str]], bool]
    reads: Callable[[Row, bool], dict[str, Any]]
    asking: tuple[str, ...] = ()
    answering: tuple[str, ...] = ()
    is_text: bool = False
    column: str = ""


def recognise(rows: Sequence[Row]) -> Layout | None:
    """Return the layout of most rows; None if it is our own or unknown."""
    layout_counts = Counter(map(_layout_of, rows))
    return layout_counts.most_common(1)[0][0] if layout_counts else None


def layout_of(task: Task, content: Rows) -> Layout | None:
    """Return the layout for reading the rows of a task; None if its templates name all fields."""
    fields, default = task.fields, Fields()
    has_templates = fields.prompt != default.prompt and fields.reference != default.reference
    return None if task.kind == "bits_per_byte" or has_templates else recognise(content.rows)


def settle_answers(task: Task, layout: Layout | None, rows: Iterable[Row]) -> Layout | None:
    """Return a layout of choices that reads answers in the form of all rows; refuse ambiguous rows."""
    if layout is None or layout.name != "multiple choice":
        return layout
    forms = row_forms.settle_forms(rows, task.fields.answers_are)
    if forms.problems:
        raise UserError(forms.problems)
    numbers = f"; numbers are {forms.numbers[0]}" if forms.has_numbers else ""
    reads = partial(_multiple_choice, forms=forms)
    return layout._replace(form=f"{layout.form}{numbers}", reads=reads)


def read(row: Row, layout: Layout | None, context_apart: bool = False) -> Row:
    """Return the row with the fields of our own layout added."""
    cells = [(name, value) for name, value in row.fields.items() if value not in (None, "")]
    if len(cells) > 1 and all(isinstance(value, str) and value.strip() == name for name, value in cells):
        raise row_forms.misfit(row, "the names of the columns once more", "a row")
    if layout is None:
        return row
    if not layout.fits(find_known_fields(row)):
        found = f"fields {', '.join(sorted(find_known_fields(row))) or 'without a value'}"
        expected = f"{layout.name} rows ({layout.form}), as most rows of the file are"
        raise UserError(row.where, found, expected, f"{FIX_ROW}, or name its fields under fields:")
    return row._replace(fields={**row.fields, **layout.reads(row, context_apart)})


def every_turn(content: Rows) -> Rows:
    """Return a row for each trained answer of the assistant, with the turns before it."""
    layout = recognise(content.rows)
    field = layout.column if layout else ""
    if not field:
        found = f"turns: all, and {layout.name if layout else 'our own'} rows"
        expected = "conversations, such as messages of role and content"
        raise UserError(content.shown, found, expected, "leave turns: out")
    rows: list[Row] = []
    for i, row in enumerate(content.rows):
        name = row.fields.get("id") or f"{content.stem}-{i}"
        cluster, value = row.fields.get("cluster"), row.fields.get(field)
        turns = value if isinstance(value, list) else []
        fields = {**row.fields, "cluster": name if cluster in (None, "") else cluster}
        per_turn = [{**fields, "id": f"{name}-{n}", field: turns[: n + 1]} for n in answer_places(turns)]
        rows += [row._replace(fields=turn_fields) for turn_fields in per_turn] or [row]
    return content._replace(rows=rows)


def context_id(text: str) -> str:
    """Return the id of a context, made from its text."""
    return f"context-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def title(row: Row) -> str:
    """Return the title of the document in a question's `context`, or ""."""
    return str(row.fields.get("title") or row.fields.get("article") or "").replace("_", " ")


def _layout_of(row: Row) -> Layout | None:
    from harness.data.guessed_columns import may_answer

    fields = find_fields(row)
    if fields & row_forms.OWN_QUESTION and fields & _OWN_ANSWER:
        return None
    if known_layout := next((layout for layout in LAYOUTS if layout.fits(fields)), None):
        return known_layout
    # A column of turns of any name is a conversation if no other column answers.
    turns = [name for name, value in row.fields.items() if is_conversation(value)]
    if len(turns) != 1 or any(may_answer(name) for name in find_known_fields(row)):
        return None
    return _conversation("chat", f"{turns[0]} that ends with the assistant's answer", turns[0])


@cache
def _conversation(name: str, form: str, column: str) -> Layout:
    def reads(row: Row, context_apart: bool) -> dict[str, Any]:
        turns = read_turns(row, column)
        _refuse_untrained(row, column)
        turns = add_system(turns, row)
        if len(turns) < 2 or turns[-1]["role"] != "assistant" or not turns[-1]["content"].strip():
            last_role = turns[-1]["role"] if turns else ""
            found = f"{column} that end with the {last_role}" if last_role else f"empty {column}"
            found = f"{column} whose last turn is empty" if last_role == "assistant" else found
            raise row_forms.misfit(row, found, "turns that end with an answer of the assistant")
        return {"messages": turns[:-1], "references": [turns[-1]["content"].strip()]}

    return Layout(name, form, _has(column), reads, column=column)


def _has(*names: str) -> Callable[[set[str]], bool]:
    return lambda fields: fields >= set(names)


def _instruction(answer: str, *inputs: str) -> Callable[[Row, bool], dict[str, Any]]:
    """Read an instruction with its input, if any, and its answer."""

    def reads(row: Row, context_apart: bool) -> dict[str, Any]:
        parts = [text_of(row.fields.get(name) or "").strip() for name in ("instruction", *inputs)]
        prompt = {"messages": user_turns("\n\n".join(filter(None, parts)), row)}
        value = row.fields[answer]
        reference = write_json(value) if is_object(value) else read_text(row, answer)
        return prompt | {"references": [reference]} | _slice(row)

    return reads


def _slice(row: Row) -> dict[str, Any]:
    name = row.fields.get("slice") or row.fields.get("category")
    return {"slice": name} if isinstance(name, str) else {}


def has_thumb_down(row: Row, layout: Layout | None) -> bool:
    """Tell whether a row of prompt and completion has a thumb down, false or 0 as in TRL."""
    return layout is not None and layout.reads is _completion and read_flag(row.fields.get("label")) is False


def _completion(row: Row, context_apart: bool) -> dict[str, Any]:
    """Read TRL's prompt and completion, each a text or a list of turns, without a thumb down."""
    if read_flag(row.fields.get("label")) is False:
        expected, step = "a right answer", "name the file under pairs: for methods that learn from thumbs"
        raise UserError(row.where, THUMB_DOWN, expected, step)
    if isinstance(row.fields["prompt"], list):
        turns = read_turns(row, "completion")
        _refuse_untrained(row, "completion")
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            raise row_forms.misfit(row, "a completion of another form", "one turn of the assistant")
        return {"messages": add_system(read_turns(row, "prompt"), row), "references": [turns[0]["content"]]}
    answer = read_text(row, "completion")
    return {"messages": user_turns(read_text(row, "prompt"), row), "references": [answer]}


def _refuse_untrained(row: Row, field: str) -> None:
    last_turn = read_leniently(next(reversed(row.fields[field]), None))
    if last_turn and last_turn.role == "assistant" and not last_turn.is_trained:
        raise row_forms.misfit(row, "a last answer that is not to be trained on", "a last answer to train on")


def _question(row: Row, context_apart: bool) -> dict[str, Any]:
    """Read a question with its accepted answers; its context comes before it unless it is retrieved."""
    question, context = read_text(row, "question"), text_of(row.fields.get("context") or "")
    field = "answers" if row.fields.get("answers") is not None else "answer"
    value = row.fields[field]
    if isinstance(value, dict):
        value = value.get("text") or [value.get("value"), *(value.get("aliases") or ())]
    entries = value if isinstance(value, list) else [value]
    texts = [entry.get("text") if isinstance(entry, dict) else entry for entry in entries]
    answers = [answer for text in texts if (answer := (text_files.text_of_cell(text) or "").strip())]
    if not answers:
        raise row_forms.misfit(row, f"no answer in {field!r}", "at least one accepted answer")
    result: dict[str, Any] = {"references": list(dict.fromkeys(answers))}
    if context.strip():
        result |= {} if row.fields.get("cluster") is not None else {"cluster": context_id(context)}
        question = question if context_apart else f"{_CONTEXT}{' '.join(context.split())}\n\n{question}"
    return result | {"messages": user_turns(question, row)} | _slice(row)


def _multiple_choice(
    row: Row, context_apart: bool, forms: row_forms.AnswerForms = row_forms.ANY_FORM
) -> dict[str, Any]:
    question, choices, right_choice = row_forms.read_choices(row, forms)
    fields = {**row.fields, "question": question, "answers": None, "answer": right_choice}
    return _question(row._replace(fields=fields), context_apart) | {"choices": choices}


def _questions_in_turn(row: Row, context_apart: bool) -> dict[str, Any]:
    """Read a conversation as lists of questions and answers: the last one is asked, after the others."""
    questions, answers = row.fields["questions"], row.fields["answers"]
    if isinstance(answers, dict):
        answers = next((answers[key] for key in ("texts", "input_text", "text") if key in answers), None)
    answer_sets = [[*dict.fromkeys(entry)] if isinstance(entry, list) else [entry] for entry in answers or []]
    lists = [questions, *answer_sets]
    are_texts = all(isinstance(texts, list) and all(isinstance(t, str) for t in texts) for texts in lists)
    if not answer_sets or not all(map(len, answer_sets)) or not are_texts:
        raise row_forms.misfit(row, "questions and answers of another form", "two lists of texts")
    if len(questions) != len(answer_sets):
        counts = f"{len(questions)} questions and {len(answer_sets)} answers"
        raise row_forms.misfit(row, counts, "an answer for each question")
    pairs = zip(questions, answer_sets, strict=True)
    spoken_turns = [turn for ask, answer in pairs for turn in (("user", ask), ("assistant", answer[0]))]
    turns = [{"role": role, "content": text} for role, text in spoken_turns]
    intro = [text_of(row.fields[name]) for name in ("background", "context", "story") if row.fields.get(name)]
    turns[0] = {"role": "user", "content": "\n\n".join([*intro, questions[0]])}
    return {"messages": turns[:-1], "references": answer_sets[-1]}


def _calls(row: Row, context_apart: bool) -> dict[str, Any]:
    """Read xLAM's query and its calls of the row's tools; an empty list means that no tool is called."""
    calls = spell_calls(row.fields["answers"])
    if not isinstance(calls, str) or not calls.strip():
        expected = "a list of calls with name and arguments, also as JSON within a text"
        raise row_forms.misfit(row, "answers of another form", expected)
    return {"messages": user_turns(read_text(row, "query"), row), "references": [calls]}


TAGS = ("ner_tags", "ner", "tags")
WORDS = ("tokens", "words")


def _tagged_tokens(row: Row, context_apart: bool) -> dict[str, Any]:
    """Read tokens as a sentence, and their tags as a JSON list of the marked pieces."""
    column = next(name for name in TAGS if row.fields.get(name) is not None)
    tokens, tags = next(row.fields[name] for name in WORDS if name in row.fields), row.fields[column]
    if not isinstance(tags, list) or not isinstance(tokens, list) or len(tokens) != len(tags):
        raise row_forms.misfit(row, f"no tag for each token in {column!r}", "two lists")
    if not all(isinstance(tag, str) for tag in tags):
        step = "no command can: the file holds no names; write those of the data set's card in their place"
        raise UserError(row.where, f"numbers in {column!r}", TAG_NAMES, step)
    pieces: list[dict[str, str]] = []
    for index, (token, tag) in enumerate(zip(map(str, tokens), tags, strict=True)):
        if tag[:2] == "I-" and index and tags[index - 1] in (tag, f"B-{tag[2:]}"):
            pieces[-1]["text"] += f" {token}"
        elif tag != "O":
            pieces.append({"text": token, "type": tag[2:] if tag[1:2] == "-" else tag})
    return {"messages": user_turns(" ".join(map(str, tokens)), row), "references": [write_json(pieces)]}


def _preference(row: Row, context_apart: bool) -> dict[str, Any]:
    pair = row_forms.read_pair(row).fields
    prompt = {name: pair[name] for name in ("prompt", "messages", *TOOL_FIELDS) if name in pair}
    return prompt | {"references": [pair["chosen"]]}


PAIRED = ("preference", "OpenAI preference", "UltraFeedback")  # layouts whose rows are pairs
_PAIR_ASKS = "messages prompt question instruction input"


def _layout(
    name: str,
    needs: str,
    reads: Callable[[Row, bool], dict[str, Any]],
    asking: str = "",
    answering: str = "",
    form: str = "",
    *,
    is_text: bool = False,
) -> Layout:
    """Declare a layout by the columns that its rows need, that ask and that answer, separated by blanks."""
    columns, form = needs.split(), form or ", ".join(needs.split())
    return Layout(name, form, _has(*columns), reads, tuple(asking.split()), tuple(answering.split()), is_text)


def _flan(row: Row, context_apart: bool) -> dict[str, Any]:
    return {"messages": user_turns(read_text(row, "inputs"), row), "references": [read_text(row, "targets")]}


# The first layout that fits a row is its layout.
LAYOUTS = (
    _layout(
        "OASST tree", "message_tree_id prompt", row_forms.best_answer, "prompt", "prompt",
        "message_tree_id, and a prompt with its replies",
    ),
    _layout(
        "UltraFeedback", "instruction completions", row_forms.best_answer, "instruction", "completions",
        "instruction, and completions with their ratings",
    ),
    _layout(
        "OpenAI preference", "input preferred_output non_preferred_output", _preference, _PAIR_ASKS,
        "chosen rejected",
    ),
    _layout("FLAN", "inputs targets", _flan, "inputs", "targets", is_text=True),
    _layout(
        "preference", "chosen rejected", _preference, _PAIR_ASKS, "chosen rejected", "chosen and rejected",
    ),
    _conversation("chat", "messages that end with the assistant's answer", "messages"),
    _conversation("ShareGPT", "conversations of from and value", "conversations"),
    _layout("prompt and completion", "prompt completion", _completion, "prompt", "completion", is_text=True),
    _layout(
        "Dolly", "instruction response", _instruction("response", "context"),
        "instruction context", "response", "instruction, context (may be empty), response",
    ),
    _layout(
        "Alpaca", "instruction output", _instruction("output", "input"),
        "instruction input", "output", "instruction, input (may be empty), output",
    ),
    _layout(
        "questions in turn", "questions answers", _questions_in_turn, "background context story questions",
        "answers", "questions and answers in lists; the last question is asked, behind the others",
    ),
    Layout(
        "tokens and tags", "tokens or words, and ner_tags, ner or tags of each, such as B-PER and O",
        lambda fields: bool(fields & {*WORDS}) and bool(fields & {*TAGS}), _tagged_tokens,
    ),
    _layout("xLAM", "query tools answers", _calls, "query", "answers", is_text=True),
    Layout(
        "multiple choice",
        "question (or query, question_stem), choices or options, and answerKey, gold, answer or label",
        row_forms.has_choices, _multiple_choice, is_text=True,
    ),
    Layout(
        "question", "question, answers or answer, context where there is one",
        lambda fields: "question" in fields and bool(fields & {"answer", "answers"}), _question, is_text=True,
    ),
)  # fmt: skip
