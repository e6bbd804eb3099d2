"""Question and answer columns, by the layout of the rows or by usual names; the user's choice comes first."""

import re
from collections.abc import Collection, Container, Iterable, Sequence
from typing import Any, NamedTuple

from harness.data import formats
from harness.data.examples import FIELD
from harness.data.formats import Layout
from harness.data.row_forms import CHOICE_QUESTIONS, RIGHT, find_column, list_choices, read_pair
from harness.data.text_files import Row, Rows, is_csv, read_flag
from harness.data.turns import SYSTEMS, list_systems, list_tools, read_leniently
from harness.errors import Problem, UserError, did_you_mean, refuse
from harness.records import digest
from harness.spec import Fields, Task

QUESTIONS = ("prompt", "question", "text", "query", "input", "message", "utterance", "sentence", "content")
ANSWERS = (
    *("reference", "label", "intent", "category", "class", "target", "answer", "output", "response"),
    "final_decision",
)
CONTEXTS = (
    *("context", "contexts", "passage", "article", "story", "document", "documents", "background", "support"),
    *("schema", "paragraph", "abstract", "premise", "table", "evidence", "transcript", "ctx"),
    *("history", "knowledge"),
)
GROUPS = (
    *("article", "title", "document", "document_id", "doc_id", "conversation_id", "dialogue_id", "thread_id"),
    *("session_id", "group", "group_id", "customer_id", "user_id", "patient_id", "author"),
)
CONTEXT, MESSAGES = "context", "messages"
_DOCUMENT = {"id", "title", "text", "source"}
# Last words of columns that are written after the answer.
TELLING = {
    *(*ANSWERS, "explanation", "rationale", "reasoning", "solution", "cot", "justification", "completion"),
    *("feedback", "critique", "prediction", "generation", "chosen", "rejected", "score", "rating"),
}
_IDS = re.compile(r"(.*[_ -])?(id|ids|uid|uuid|guid|idx|index)|(?-i:.+I[dD])", re.IGNORECASE)


class Roles(NamedTuple):
    """Question and answer columns; a column in both has turns or a tree."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]


class QuestionAndAnswers(NamedTuple):
    """Question of a row, its answers and the question's context, each as one text.

    `choices` are sorted, `thumb` is that of a rated answer, and `tools` the digest of the row's tools.
    """

    question: str
    answers: tuple[str, ...]
    context: str = ""
    system: str = ""
    choices: str = ""
    thumb: str = ""
    tools: str = ""

    @property
    def whole(self) -> str:
        """The question with its context and choices."""
        return "\n".join(filter(str.strip, (self.context, self.question, self.choices)))


_ROLES = {layout.name: Roles(layout.asking, layout.answering) for layout in formats.LAYOUTS if layout.asking}
PAIRS = _ROLES["preference"]
RATED = (
    _ROLES["OASST tree"],
    _ROLES["UltraFeedback"],
)  # several answers per row, of which ratings name the best


def find_roles(content: Rows, prompt: str | None = None, reference: str | None = None) -> Roles:
    """Find the question and answer columns; `prompt` and `reference`, columns or templates, come first."""
    refuse(find_missing_header(content, is_named=bool(prompt or reference)))
    names = [*content.names]
    given = {"prompt": columns_of(prompt, names), "reference": columns_of(reference, names)}
    layout = formats.recognise(content.rows)
    whole = _layout_roles(layout, names).questions if layout else ()
    given["prompt"] = _put_in_whole(given["prompt"], tuple(name for name in whole if name in names))
    for option, columns in given.items():
        for column in columns:
            require_column(content.shown, names, column, f"--{option}")
    if all(given.values()):
        return Roles(given["prompt"], given["reference"])
    filled = find_filled_columns(content.rows)
    questions = {"prompt", "messages"} & {*names}
    answers = {"reference", "references", "constraints"} & {*names}
    if layout is not None:
        found = _layout_roles(layout, filled)
    elif questions and answers:
        found = Roles(tuple(sorted(questions)), tuple(sorted(answers)))
    elif filled <= _DOCUMENT and "text" in filled:
        found = Roles(("text",), ())
    else:
        from harness.data.guessed_columns import guess_columns

        known = {option: f"{{{columns[0]}}}" for option, columns in given.items() if columns}
        guessed = guess_columns(content, filled, known)
        found = Roles(*(columns_of(guessed[option], names) for option in given))
    return Roles(given["prompt"] or found.questions, given["reference"] or found.answers)


def columns_of(named: str | None, names: Container[str]) -> tuple[str, ...]:
    """Return the columns of a name or a template over columns; of `answers.text` the outer one."""
    if not named or "{" not in named:
        return (named,) if named else ()
    if name_in(named) in names:
        return (name_in(named),)
    found = (c if c in names else c.partition(".")[0] for c in FIELD.findall(named))
    return tuple(dict.fromkeys(found))


def option_text(template: str, default: str) -> str | None:
    """Return a template as an option's text, `{text}` as `text`; None if it is the default."""
    if template == default:
        return None
    return template[1:-1] if FIELD.fullmatch(template) else template


def find_reading_roles(task: Task, layout: Layout | None, names: Collection[str]) -> Roles:
    """Return the columns that ask and answer when a task's templates or a layout read the rows."""
    fields, default = task.fields, Fields()
    is_named = fields.reference != default.reference
    if task.kind == "bits_per_byte":
        return Roles(columns_of(fields.reference, names) if is_named else ("text",), ())
    found = Roles(
        tuple(name for name in ("messages", "prompt") if name in names),
        tuple(name for name in ("constraints", "reference", "references") if name in names),
    )
    if layout is not None:
        found = _layout_roles(layout, names)
    questions = found.questions
    if fields.prompt != default.prompt:
        questions = _put_in_whole(columns_of(fields.prompt, names), found.questions if layout else ())
    return Roles(questions, columns_of(fields.reference, names) if is_named else found.answers)


def _put_in_whole(shown: tuple[str, ...], of_layout: tuple[str, ...]) -> tuple[str, ...]:
    """Replace `{messages}` in a template by the layout's question columns."""
    if MESSAGES not in shown or not of_layout:
        return shown
    return (*(name for name in shown if name not in (MESSAGES, *of_layout)), *of_layout)


def answer_column(task: Task, layout: Layout | None, names: Collection[str]) -> str | None:
    """Return the one column with the answers, or the turns that end with them; None if there are several."""
    template = task.fields.reference
    if layout is not None and layout.name in ("OASST tree", "UltraFeedback"):
        return None
    answers = find_reading_roles(task, layout, names).answers
    if template == Fields().reference and layout is None:
        answers = next(((name,) for name in ("references", "reference") if name in names), answers)
    is_one = len(answers) == 1 and answers[0] in names and FIELD.fullmatch(template)
    return answers[0] if is_one else None


def require_column(shown: str, names: Iterable[str], column: str, option: str) -> None:
    """Refuse a column that no row has."""
    if column not in (names := set(names)):
        where, hint = f"{shown}, {option}", did_you_mean(column, names)
        raise UserError(where, f"no column {column!r}", "a column", hint)


def read_question_and_answers(row: Row, roles: Roles) -> QuestionAndAnswers:
    """Return the question and answers of a row; a missing value is an empty text."""
    fields = row.fields
    qa = _read_texts(row, roles)
    read = {*roles.questions, *roles.answers}
    choices = list_choices({name: value for name, value in fields.items() if name not in read})[1]
    if isinstance(choices, list) and choices:
        qa = qa._replace(choices="\n".join(sorted(map(join_texts, choices))))
    is_up = read_flag(fields.get("label")) if roles == _ROLES["prompt and completion"] else None
    if is_up is not None:
        qa = qa._replace(thumb=str(is_up))
    systems: Sequence[str] = SYSTEMS
    if roles not in _ROLES.values() and roles.questions != roles.answers:
        systems = list_systems(" ".join(map("{{{}}}".format, roles.questions)))
    if system := next((fields[name] for name in systems if isinstance(fields.get(name), str)), None):
        qa = qa._replace(system="\n".join(filter(None, (system, qa.system))))
    try:
        tools = list_tools(row._replace(fields=_pair(row)) if roles == PAIRS else row)
    except UserError:  # unreadable definitions
        tools = []
    return qa._replace(tools=digest(tools) if tools else "")


def _read_texts(row: Row, roles: Roles) -> QuestionAndAnswers:
    fields = row.fields
    if roles == PAIRS:
        fields = _pair(row)
        roles = roles._replace(questions=next(((n,) for n in roles.questions if fields.get(n)), ()))
    if both := next((name for name in roles.questions if name in roles.answers), None):
        turns, context = fields.get(both), [fields.get(name) for name in roles.questions if name != both]
        if isinstance(turns, dict):  # a message with its replies
            return QuestionAndAnswers(join_texts(turns), (_tree_text(turns.get("replies")),))
        system, others = list[Any](), list[Any]()
        for turn in turns if isinstance(turns, list) else [turns]:
            is_system = isinstance(turn, dict) and "system" in (turn.get("role"), turn.get("from"))
            (system if is_system else others).append(turn)
        texts = join_texts(others[:-1]), (join_texts(others[-1:]),), join_texts(context)
        return QuestionAndAnswers(*texts, system=join_texts(system))
    parts = (join_texts(fields.get(name)) for name in roles.questions if name != CONTEXT)
    answers = list[str]()
    for answer in (fields.get(name) for name in roles.answers):  # accepted answers in any order are the same
        answers.append("\n".join(sorted(map(join_texts, answer if isinstance(answer, list) else [answer]))))
    given = join_texts(fields.get(CONTEXT)) if CONTEXT in roles.questions else ""
    return QuestionAndAnswers("\n".join(part for part in parts if part.strip()), tuple(answers), given)


def _tree_text(replies: Any) -> str:
    if not isinstance(replies, list):
        return join_texts(replies)
    messages = [reply for reply in replies if isinstance(reply, dict)]
    texts = (text for m in messages for text in (join_texts([m]), _tree_text(m.get("replies"))))
    return "\n".join(filter(None, texts))


def join_texts(value: Any) -> str:
    """Join the texts of a value: of turns what was said, of lists and objects all their texts."""
    if isinstance(value, list):
        return "\n".join(map(join_texts, value))
    if isinstance(value, dict):
        if turn := read_leniently(value):
            return turn.text
        inner = next((value[name] for name in ("content", "value", "text") if name in value), None)
        return join_texts(inner if inner is not None else list(value.values()))
    return "" if value is None else str(value)


def find_filled_columns(content: Sequence[Row]) -> set[str]:
    """Return the fields that most rows fill; if none of them answers by its name, a quarter is enough."""
    names = {name for row in content for name in row.fields}
    filled = {name: sum(row.fields.get(name) not in (None, "") for row in content) for name in names}
    most = {name for name, n in filled.items() if 2 * n > len(content)}
    some = {name for name, n in filled.items() if 4 * n > len(content) and find_by_name({name}, ANSWERS)}
    return most if find_by_name(most, ANSWERS) else most | some


def find_missing_header(content: Rows, *, is_named: bool) -> Problem | None:
    """Describe a CSV file whose first line is probably a row; None if a column is named or usual."""
    from harness.data.check.personal_data import excerpt

    names = list(content.rows[0].fields)
    usual = {"id", *QUESTIONS, *ANSWERS, *GROUPS} & {name.lower() for name in names}
    if is_named or usual or not is_csv(content.shown):
        return None
    # The header may be repeated where files were joined.
    rows = [row for row in content.rows if any(str(row.fields.get(n, "")).strip() != n for n in names)]
    counts = {name: sum(str(row.fields.get(name)).strip() == name for row in rows) for name in names}
    value = max(names, key=counts.__getitem__)
    others = [n for n in names if not (n.endswith((".", "?", "!")) and len(n.split()) > 2) and len(n) <= 100]
    filled = find_filled_columns(content.rows)
    unnamed = filled & {f"column {place}" for place, _ in enumerate(names, start=1)}
    expected = "a header line that names the columns, such as text,label"
    step = "or where it is one: --prompt COLUMN --reference COLUMN"
    if 2 * len(unnamed) > len(filled):
        found = f"a first line that names {len(filled - unnamed)} of {len(filled)} columns"
        return Problem(f"{content.shown}:1", found, expected, f"delete the lines above it, {step}")
    are_numbers = len(others) < len(names) and all(name.replace(".", "", 1).isdigit() for name in others)
    if counts[value] < 2 and not are_numbers:
        return None
    why = f", which {counts[value]:,} rows hold in that column," if counts[value] > 1 else " and other data"
    found = f"{excerpt(value, 60)!r}{why} where names of columns belong"
    return Problem(f"{content.shown}:1", found, expected, f"add a header line, {step}")


def name_in(template: str | None) -> str:
    """Return the column's name in a template of one column."""
    return template[1:-1] if template and template.startswith("{") else template or ""


def _layout_roles(layout: Layout, names: Collection[str]) -> Roles:
    if layout.name == "multiple choice":
        named = dict.fromkeys(names, "")
        question, answers = (find_column(named, usual) or usual[0] for usual in (CHOICE_QUESTIONS, RIGHT))
        return Roles((question, CONTEXT), (answers,))
    if layout.column:
        return Roles((layout.column,), (layout.column,))
    if layout.name == "tokens and tags":
        shown, tags = (tuple(n for n in known if n in names)[:1] for known in (formats.WORDS, formats.TAGS))
        return Roles(shown, tags)
    answer = "answers" if "answers" in names else "answer"
    return _ROLES.get(layout.name, Roles(("question", CONTEXT), (answer,)))


def _pair(row: Row) -> dict[str, Any]:
    """Return the fields of a pair with its question, or the row's fields if it is no pair."""
    try:
        return read_pair(row).fields
    except UserError:
        return row.fields


def find_by_name(columns: set[str], known: Iterable[str], other: Container[str] = ()) -> str | None:
    """Find the column of a known name, or one that has it as a word or its end (not of the `other` role)."""
    words = {column: re.findall(r"\w+", column.lower()) for column in sorted(columns)}
    heads = {column: find_head(column) for column in words}
    exact = (column for name in known for column in words if words[column] == [name])
    free = [column for column in words if heads[column] not in other]
    part = (c for name in known for c in free if name in words[c] or name == heads[c])
    found = next(exact, None) or next(part, None)
    return None if found is None else f"{{{found}}}"


def find_head(column: str) -> str:
    """Return the last word of a column's name; of `question_text` the one before it."""
    words: list[str] = re.findall(r"[^\W_]+", column.lower()) or [""]
    return words[-2] if words[-1] == "text" and len(words) > 1 else words[-1]


def is_id(column: str) -> bool:
    """Tell from its name whether a column, or a part of one, holds ids."""
    return _IDS.fullmatch(column.rpartition(".")[2]) is not None


def column_options(prompt: str | None, reference: str | None) -> list[str]:
    """List the options that name the columns of question and answer, as words of a command."""
    named = (("--prompt", prompt), ("--reference", reference))
    return [word for option, column in named if column for word in (option, column)]
