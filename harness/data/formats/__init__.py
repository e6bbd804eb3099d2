"""Layouts that other tools write, recognised by their fields and read into our own.

Invariant: a file has one layout, that of most of its rows, and a row that does not fit it is
refused; templates under `fields:` always win over what a layout would give.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from harness.data.formats.ratings import MEND_ROW, PREFERRED, RATED, TREE, best_answer, judged_pair
from harness.data.readers import Row, Rows
from harness.errors import Problem, UserError
from harness.records import Message, parse_json
from harness.spec import Task

Turns = list[Message]

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "developer": "system",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "user",
    "function": "user",
}
_TOOLS = ("tool", "function")  # what they return is read as a turn of the user
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_CONTEXT = "Context:\n"
THUMB_DOWN = "an answer with a thumb down"
_OWN_QUESTION = {"prompt", "messages"}
_OWN_ANSWER = {"reference", "references", "constraints"}


class Layout(NamedTuple):
    """A layout: its name, its fields as one writes them, how to tell it, how to read a row of it.

    `reads` takes a row, and whether contexts are left to retrieval, to the fields of our own layout.
    """

    name: str
    form: str
    fits: Callable[[set[str]], bool]
    reads: Callable[[Row, bool], dict[str, Any]]


def recognise(rows: Sequence[Row]) -> Layout | None:
    """Return the layout of most rows; None where they are in our own, or in none that is known."""
    found = Counter(_layout_of(_known_fields(row)) for row in rows)
    return found.most_common(1)[0][0] if found else None


def layout_of(task: Task, content: Rows) -> Layout | None:
    """Return the layout that the rows of a task are read by; None where its templates say it all."""
    template = type(task.fields).model_fields
    said = (
        task.fields.prompt != template["prompt"].default,
        task.fields.reference != template["reference"].default,
    )
    return None if task.kind == "bits_per_byte" or all(said) else recognise(content.rows)


def read(row: Row, layout: Layout | None, context_apart: bool = False) -> Row:
    """Return the row with the fields of our own layout beside its own.

    Raises:
        UserError: the row does not fit.
    """
    if layout is None:
        return row
    if not layout.fits(_known_fields(row)):
        raise UserError(
            _misfit(row, f"fields {', '.join(sorted(_known_fields(row))) or 'without a value'}", layout)
        )
    return row._replace(fields={**row.fields, **layout.reads(row, context_apart)})


def every_turn(content: Rows) -> Rows:
    """Return a row for every answer of the assistant in a conversation, each with the turns before it.

    An answer that is empty or has OpenAI's weight 0 is only read; a conversation without one stays as it is.

    Raises:
        UserError: the rows are no conversations.
    """
    layout = recognise(content.rows)
    field = {"chat": "messages", "ShareGPT": "conversations"}.get(layout.name if layout else "")
    if field is None:
        found = f"turns: all, and {layout.name if layout else 'our own'} rows"
        expected = "conversations, as messages or as conversations"
        raise UserError(Problem(content.shown, found, expected, "leave turns: out"))
    made: list[Row] = []
    for i, row in enumerate(content.rows):
        name = row.fields.get("id") or f"{content.stem}-{i}"
        cluster, written = row.fields.get("cluster"), row.fields.get(field)
        entries = written if isinstance(written, list) else []
        ends = _answer_places(entries)
        for end in ends:
            own = {
                "id": f"{name}-{end}",
                "cluster": name if cluster in (None, "") else cluster,
                field: entries[: end + 1],
            }
            made.append(row._replace(fields={**row.fields, **own}))
        made += [] if ends else [row]
    return content._replace(rows=made)


def _answer_places(entries: Sequence[Any]) -> list[int]:
    """Return the places of the assistant's turns that can be trained on."""
    turns = [(i, entry) for i, entry in enumerate(entries) if i and isinstance(entry, dict)]
    return [
        i
        for i, entry in turns
        if _ROLES.get(str(entry.get("role") or entry.get("from"))) == "assistant"
        and entry.get("weight") != 0
        and str(_with_calls(entry.get("content") or entry.get("value"), entry) or "").strip()
    ]


def read_pair(row: Row) -> Row:
    """Return a preference pair with its prompt as messages, and its two answers as texts.

    Raises:
        UserError: the answers are equal or empty, or do not answer the same conversation.
    """
    row = judged_pair(row)
    if not {"chosen", "rejected"} <= _known_fields(row):
        return row
    chosen, rejected = _conversation(row, "chosen"), _conversation(row, "rejected")
    if chosen is None or rejected is None:
        return _check_pair(_with_question(row))
    if not chosen or not rejected:
        raise UserError(Problem(row.where, "an empty conversation", "turns", MEND_ROW))
    n = _n_shared(chosen, rejected)
    answers = chosen[n:], rejected[n:]
    if any(len(rest) > 1 or rest[0]["role"] != "assistant" for rest in answers if rest):
        raise UserError(
            Problem(
                row.where,
                "two conversations that part before the last answer",
                "chosen and rejected with the same turns up to one last answer each",
                MEND_ROW,
            )
        )
    texts = [rest[0]["content"] if rest else "" for rest in answers]
    fields = {**row.fields, "chosen": texts[0], "rejected": texts[1]}
    return _check_pair(_with_question(row._replace(fields=fields | ({"messages": chosen[:n]} if n else {}))))


def read_thumb(row: Row) -> Row | None:
    """Return an answer with a thumb as TRL writes it, `completion` beside `label`; None of other rows.

    Its prompt is read as a pair's is; `completion` is a text, and `label` true or false.

    Raises:
        UserError: the label is no thumb, or the completion is empty or no answer.
    """
    if not {"completion", "label"} <= _known_fields(row) or {"chosen", "rejected"} <= _known_fields(row):
        return None
    label, completion = row.fields["label"], row.fields["completion"]
    if not isinstance(label, bool) and label not in (0, 1):
        raise UserError(Problem(row.where, f"the label {label!r}", "true or false, a thumb", MEND_ROW))
    if isinstance(completion, list):
        turns = _turns(row, "completion")
        if len(turns) != 1 or turns[0]["role"] != "assistant":
            expected = "one turn of the assistant"
            raise UserError(Problem(row.where, "a completion of another form", expected, MEND_ROW))
        completion = turns[0]["content"]
    answer = _text(row._replace(fields={**row.fields, "completion": completion}), "completion")
    return _with_question(row._replace(fields={**row.fields, "completion": answer, "label": bool(label)}))


def context_id(text: str) -> str:
    """Name a context by its text."""
    return f"context-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def title(row: Row) -> str:
    """Return the title of the document a question belongs to, or nothing."""
    return str(row.fields.get("title") or row.fields.get("article") or "").replace("_", " ")


def _known_fields(row: Row) -> set[str]:
    return {name for name, value in row.fields.items() if value is not None}


def _layout_of(fields: set[str]) -> Layout | None:
    if fields & _OWN_QUESTION and fields & _OWN_ANSWER:
        return None
    return next((layout for layout in LAYOUTS if layout.fits(fields)), None)


def _misfit(row: Row, found: str, layout: Layout) -> Problem:
    expected = f"{layout.name} rows ({layout.form}), as most rows of the file are"
    return Problem(row.where, found, expected, f"{MEND_ROW}, or name its fields under fields:")


def _has(*names: str) -> Callable[[set[str]], bool]:
    return lambda fields: fields >= set(names)


def _user_turns(text: str, row: Row) -> Turns:
    if not text.strip():
        raise UserError(Problem(row.where, "an empty question", "a text", MEND_ROW))
    system = row.fields.get("system") or row.fields.get("system_prompt")
    turns = [{"role": "user", "content": text}]
    return [{"role": "system", "content": str(system)}, *turns] if system else turns


def _instruction(answer: str, *inputs: str) -> Callable[[Row, bool], dict[str, Any]]:
    """Read an instruction, what it is about where there is something, and its answer."""

    def reads(row: Row, context_apart: bool) -> dict[str, Any]:
        parts = [str(row.fields.get(name) or "").strip() for name in ("instruction", *inputs)]
        asked = {"messages": _user_turns("\n\n".join(filter(None, parts)), row)}
        return asked | {"references": [_text(row, answer)]} | _slice(row)

    return reads


def _slice(row: Row) -> dict[str, Any]:
    known = row.fields.get("slice") or row.fields.get("category")
    return {"slice": known} if isinstance(known, str) else {}


def _text(row: Row, field: str) -> str:
    value = row.fields[field]
    if not isinstance(value, str | int | float) or not str(value).strip():
        kind = type(value).__name__
        found = f"an empty {field!r}" if isinstance(value, str) else f"a {kind} in {field!r}"
        raise UserError(Problem(row.where, found, "a text", MEND_ROW))
    return str(value).strip()


def _completion(row: Row, context_apart: bool) -> dict[str, Any]:
    """Read TRL's prompt and completion, each a text or a list of turns, where no thumb is down."""
    if row.fields.get("label") == 0:  # as TRL reads it, false or 0
        expected, step = "a right answer", "name the file under pairs: for methods that learn from thumbs"
        raise UserError(Problem(row.where, THUMB_DOWN, expected, step))
    if isinstance(row.fields["prompt"], list):
        answer = _turns(row, "completion")
        if len(answer) != 1 or answer[0]["role"] != "assistant":
            raise UserError(
                Problem(row.where, "a completion of another form", "one turn of the assistant", MEND_ROW)
            )
        return {"messages": _turns(row, "prompt"), "references": [answer[0]["content"]]}
    return {"messages": _user_turns(_text(row, "prompt"), row), "references": [_text(row, "completion")]}


def _chat(field: str) -> Callable[[Row, bool], dict[str, Any]]:
    """Read a conversation whose last turn is the answer."""

    def reads(row: Row, context_apart: bool) -> dict[str, Any]:
        turns = _turns(row, field)
        if turns and row.fields[field][-1].get("weight") == 0:
            expected = "a last answer to train on"
            raise UserError(Problem(row.where, "a last answer of weight 0", expected, MEND_ROW))
        system = row.fields.get("system")
        if isinstance(system, str) and system and turns and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": system}, *turns]
        if len(turns) < 2 or turns[-1]["role"] != "assistant" or not turns[-1]["content"].strip():
            found = f"{field} that end with the {turns[-1]['role']}" if turns else f"empty {field}"
            found = (
                f"{field} whose last turn is empty" if turns and turns[-1]["role"] == "assistant" else found
            )
            expected = "turns that end with an answer of the assistant"
            raise UserError(Problem(row.where, found, expected, MEND_ROW))
        return {"messages": turns[:-1], "references": [turns[-1]["content"].strip()]}

    return reads


def _turns(row: Row, field: str) -> Turns:
    """Read turns of role and content, or of from and value."""
    entries = row.fields[field]
    expected = f"a list of {{role, content}} or {{from, value}} in {field!r}"
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(Problem(row.where, f"{field!r} of another form", expected, MEND_ROW))
    turns: Turns = []
    was = ""
    for entry in entries:
        speaker = str(entry.get("role") or entry.get("from"))
        content = _said(entry.get("content") if entry.get("content") is not None else entry.get("value"))
        content = _with_calls(content, entry)
        if speaker not in _ROLES or not isinstance(content, str):
            found = (
                f"a turn of {speaker!r}" if speaker not in _ROLES else f"a turn of {speaker!r} without text"
            )
            raise UserError(
                Problem(row.where, found, "turns of system, user and assistant, with text", MEND_ROW)
            )
        if speaker in _TOOLS and turns and turns[-1]["role"] == "user" and was == speaker:
            content = f"{turns.pop()['content']}\n{content}"  # results of several calls
        turns.append({"role": _ROLES[speaker], "content": content})
        was = speaker
    return turns


def _with_calls(content: Any, entry: Mapping[str, Any]) -> Any:
    """Write the calls of tools as JSON, one a line, behind what is said, as OpenAI's files hold them."""
    calls = [call.get("function") for call in entry.get("tool_calls") or () if isinstance(call, dict)]
    shown = [_call(call) for call in (*calls, entry.get("function_call")) if isinstance(call, dict)]
    said = [content] if isinstance(content, str) and content else []
    return "\n".join([*said, *shown]) if shown else content


def _call(call: Mapping[str, Any]) -> str:
    """Write a call as JSON; its arguments are JSON in a text already."""
    arguments = call.get("arguments")
    try:
        given = parse_json(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        given = arguments
    return json.dumps({"name": call.get("name"), "arguments": given}, ensure_ascii=False)


def _said(content: Any) -> Any:
    """Join the parts of a turn where all of them are texts, as OpenAI's files may have it."""
    if isinstance(content, list) and content:
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if all(isinstance(text, str) for text in texts):
            return "\n".join(map(str, texts))
    return content


def _flan(row: Row, context_apart: bool) -> dict[str, Any]:
    """Read FLAN's inputs and targets."""
    return {"messages": _user_turns(_text(row, "inputs"), row), "references": [_text(row, "targets")]}


def _message(row: Row, context_apart: bool) -> dict[str, Any]:
    """Refuse a message of a tree that stands alone, since its question is in another row.

    Raises:
        UserError: always.
    """
    step = "take the file of trees, such as 2023-04-12_oasst_ready.trees.jsonl.gz"
    raise UserError(Problem(row.where, "single messages of OASST", "its message trees, one a row", step))


def _question(row: Row, context_apart: bool) -> dict[str, Any]:
    """Read a question with its accepted answers; its context goes in front of it unless it is retrieved."""
    question, context = _text(row, "question"), row.fields.get("context")
    out: dict[str, Any] = {"references": _answers(row)}
    if isinstance(context, str) and context.strip():
        out |= {} if row.fields.get("cluster") is not None else {"cluster": context_id(context)}
        question = question if context_apart else f"{_CONTEXT}{' '.join(context.split())}\n\n{question}"
    return out | {"messages": _user_turns(question, row)} | _slice(row)


def _answers(row: Row) -> list[str]:
    field = "answers" if row.fields.get("answers") is not None else "answer"
    value = row.fields[field]
    if isinstance(value, dict):
        value = value.get("text")
    entries = value if isinstance(value, list) else [value]
    texts = [entry.get("text") if isinstance(entry, dict) else entry for entry in entries]
    answers = [
        str(text).strip() for text in texts if isinstance(text, str | int | float) and str(text).strip()
    ]
    if not answers:
        raise UserError(
            Problem(row.where, f"no answer in {field!r}", "at least one accepted answer", MEND_ROW)
        )
    return list(dict.fromkeys(answers))


def _preference(row: Row, context_apart: bool) -> dict[str, Any]:
    """Read a pair as an item whose right answer is the chosen one."""
    pair = read_pair(row).fields
    asked = {name: pair[name] for name in ("prompt", "messages") if name in pair}
    return asked | {"references": [pair["chosen"]]}


def _conversation(row: Row, field: str) -> Turns | None:
    """Read a list of turns, or a transcript of Human and Assistant; None where it is a text alone."""
    value = row.fields[field]
    if isinstance(value, list):
        return _turns(row, field)
    if not isinstance(value, str) or not _SPEAKER.match(f"\n\n{value.lstrip()}"):
        return None
    parts = _SPEAKER.split(f"\n\n{value.lstrip()}")[1:]
    speakers = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": speakers[speaker], "content": text.strip()}
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def _n_shared(chosen: Turns, rejected: Turns) -> int:
    pairs = enumerate(zip(chosen, rejected, strict=False))
    n = next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    # Equal to the end: the last turn is the answer, twice.
    return n - 1 if n == len(chosen) == len(rejected) else n


def _with_question(row: Row) -> Row:
    """Give a pair whose question stands under another tool's name our own."""
    fields = row.fields
    if isinstance(fields.get("prompt"), list) and not fields.get("messages"):
        return row._replace(fields={**fields, "messages": _turns(row, "prompt")})
    if fields.keys() & _OWN_QUESTION:
        return row
    parts = [fields.get("question") or fields.get("instruction"), fields.get("input")]
    text = "\n\n".join(str(part) for part in parts if part)
    return row._replace(fields={**fields, "messages": _user_turns(text, row)}) if text else row


def _check_pair(pair: Row) -> Row:
    """Refuse a pair that says nothing of what is preferred."""
    chosen, rejected = (" ".join(str(pair.fields[name]).split()) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise UserError(
            Problem(pair.where, "two equal answers", "a chosen answer and another rejected one", MEND_ROW)
        )
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not text:
            raise UserError(Problem(pair.where, f"an empty {name} answer", "a text", MEND_ROW))
    return pair


def _judged(row: Row, context_apart: bool) -> dict[str, Any]:
    return best_answer(row)


PAIRED = ("preference", "OpenAI preference", "UltraFeedback")  # layouts whose rows are pairs
LAYOUTS = (
    Layout("OASST tree", "message_tree_id, and a prompt with its replies", _has(*TREE), _judged),
    Layout("OASST message", "message_id, parent_id, text", _has("message_id", "parent_id", "text"), _message),
    Layout("UltraFeedback", "instruction, and completions with their ratings", _has(*RATED), _judged),
    Layout(
        "OpenAI preference", "input, preferred_output, non_preferred_output", _has(*PREFERRED), _preference
    ),
    Layout("FLAN", "inputs, targets", _has("inputs", "targets"), _flan),
    Layout("preference", "chosen and rejected", _has("chosen", "rejected"), _preference),
    Layout("chat", "messages that end with the assistant's answer", _has("messages"), _chat("messages")),
    Layout("ShareGPT", "conversations of from and value", _has("conversations"), _chat("conversations")),
    Layout("prompt and completion", "prompt, completion", _has("prompt", "completion"), _completion),
    Layout(
        "Dolly",
        "instruction, context (may be empty), response",
        _has("instruction", "response"),
        _instruction("response", "context"),
    ),
    Layout(
        "Alpaca",
        "instruction, input (may be empty), output",
        _has("instruction", "output"),
        _instruction("output", "input"),
    ),
    Layout(
        "question",
        "question, answers or answer, context where there is one",
        lambda fields: "question" in fields and bool(fields & {"answer", "answers"}),
        _question,
    ),
)
