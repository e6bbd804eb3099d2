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
    """Question and answer columns; a column in both holds turns or a tree."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]


class QuestionAndAnswers(NamedTuple):
    """Question of a row, its answers and the question's context, each as one text.

    `choices` are sorted, `thumb` is the thumb of a rated answer, and `tools` the digest of the row's tools.
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
RATED = (_ROLES["OASST tree"], _ROLES["UltraFeedback"])  # several answers per row; ratings name the best


def find_roles(content: Rows, prompt: str | None = None, reference: str | None = None) -> Roles:
    """Find the question and answer columns; `prompt` and `reference`, columns or templates, come first."""
    refuse(find_missing_header(content, is_named=bool(prompt or reference)))
    names = [*content.names]
    named_columns = {"prompt": columns_of(prompt, names), "reference": columns_of(reference, names)}
    layout = formats.recognise(content.rows)
    layout_columns = _layout_roles(layout, names).questions if layout else ()
    present_columns = tuple(name for name in layout_columns if name in names)
    named_columns["prompt"] = _put_in_whole(named_columns["prompt"], present_columns)
    for option, columns in named_columns.items():
        for column in columns:
            require_column(content.shown, names, column, f"--{option}")
    if all(named_columns.values()):
        return Roles(named_columns["prompt"], named_columns["reference"])
    filled = find_filled_columns(content.rows)
    questions = {"prompt", "messages"} & {*names}
    answers = {"reference", "references", "constraints"} & {*names}
    if layout is not None:
        roles = _layout_roles(layout, filled)
    elif questions and answers:
        roles = Roles(tuple(sorted(questions)), tuple(sorted(answers)))
    elif filled <= _DOCUMENT and "text" in filled:
        roles = Roles(("text",), ())
    else:
        from harness.data.guessed_columns import guess_columns

        templates = {option: f"{{{columns[0]}}}" for option, columns in named_columns.items() if columns}
        guesses = guess_columns(content, filled, templates)
        roles = Roles(*(columns_of(guesses[option], names) for option in named_columns))
    return Roles(named_columns["prompt"] or roles.questions, named_columns["reference"] or roles.answers)


def columns_of(template: str | None, names: Container[str]) -> tuple[str, ...]:
    """Return the columns of a name or a template over columns; for `answers.text`, the outer column."""
    if not template or "{" not in template:
        return (template,) if template else ()
    if name_in(template) in names:
        return (name_in(template),)
    columns = (c if c in names else c.partition(".")[0] for c in FIELD.findall(template))
    return tuple(dict.fromkeys(columns))


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
    roles = Roles(
        tuple(name for name in ("messages", "prompt") if name in names),
        tuple(name for name in ("constraints", "reference", "references") if name in names),
    )
    if layout is not None:
        roles = _layout_roles(layout, names)
    questions = roles.questions
    if fields.prompt != default.prompt:
        questions = _put_in_whole(columns_of(fields.prompt, names), roles.questions if layout else ())
    return Roles(questions, columns_of(fields.reference, names) if is_named else roles.answers)


def _put_in_whole(columns: tuple[str, ...], layout_columns: tuple[str, ...]) -> tuple[str, ...]:
    """Replace `{messages}` in a template by the layout's question columns."""
    if MESSAGES not in columns or not layout_columns:
        return columns
    return (*(name for name in columns if name not in (MESSAGES, *layout_columns)), *layout_columns)


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


def require_column(shown_path: str, names: Iterable[str], column: str, option: str) -> None:
    """Refuse a column that no row has."""
    if column not in (names := set(names)):
        where, hint = f"{shown_path}, {option}", did_you_mean(column, names)
        raise UserError(where, f"no column {column!r}", "a column", hint)


def read_question_and_answers(row: Row, roles: Roles) -> QuestionAndAnswers:
    """Return the question and answers of a row; a missing value is an empty text."""
    fields = row.fields
    qa = _read_texts(row, roles)
    role_columns = {*roles.questions, *roles.answers}
    choices = list_choices({name: value for name, value in fields.items() if name not in role_columns})[1]
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
    if column := next((name for name in roles.questions if name in roles.answers), None):
        turns, context = fields.get(column), [fields.get(name) for name in roles.questions if name != column]
        if isinstance(turns, dict):  # a message with its replies
            return QuestionAndAnswers(join_texts(turns), (_tree_text(turns.get("replies")),))
        system, other_turns = list[Any](), list[Any]()
        for turn in turns if isinstance(turns, list) else [turns]:
            is_system = isinstance(turn, dict) and "system" in (turn.get("role"), turn.get("from"))
            (system if is_system else other_turns).append(turn)
        texts = join_texts(other_turns[:-1]), (join_texts(other_turns[-1:]),), join_texts(context)
        return QuestionAndAnswers(*texts, system=join_texts(system))
    parts = (join_texts(fields.get(name)) for name in roles.questions if name != CONTEXT)
    answers = list[str]()
    for answer in (fields.get(name) for name in roles.answers):  # accepted answers in any order are the same
        answers.append("\n".join(sorted(map(join_texts, answer if isinstance(answer, list) else [answer]))))
    context_text = join_texts(fields.get(CONTEXT)) if CONTEXT in roles.questions else ""
    return QuestionAndAnswers("\n".join(part for part in parts if part.strip()), tuple(answers), context_text)


def _tree_text(replies: Any) -> str:
    if not isinstance(replies, list):
        return join_texts(replies)
    messages = [reply for reply in replies if isinstance(reply, dict)]
    texts = (text for m in messages for text in (join_texts([m]), _tree_text(m.get("replies"))))
    return "\n".join(filter(None, texts))


def join_texts(value: Any) -> str:
    """Join the texts of a value: for turns what was said, for lists and objects all their texts."""
    if isinstance(value, list):
        return "\n".join(map(join_texts, value))
    if isinstance(value, dict):
        if turn := read_leniently(value):
            return turn.text
        inner = next((value[name] for name in ("content", "value", "text") if name in value), None)
        return join_texts(inner if inner is not None else list(value.values()))
    return "" if value is None else str(value)


def find_filled_columns(content: Sequence[Row]) -> set[str]:
    """Return the fields that most rows fill; if none is named like an answer, a quarter is enough."""
    names = {name for row in content for name in row.fields}
    counts = {name: sum(row.fields.get(name) not in (None, "") for row in content) for name in names}
    majority = {name for name, n in counts.items() if 2 * n > len(content)}
    minority = {name for name, n in counts.items() if 4 * n > len(content) and find_by_name({name}, ANSWERS)}
    return majority if find_by_name(majority, ANSWERS) else majority | minority


def find_missing_header(content: Rows, *, is_named: bool) -> Problem | None:
    """Describe a CSV file whose first line is probably a row; None if a column is named or usual."""
    from harness.data.check.personal_data import excerpt

    names = list(content.rows[0].fields)
    usual_names = {"id", *QUESTIONS, *ANSWERS, *GROUPS} & {name.lower() for name in names}
    if is_named or usual_names or not is_csv(content.shown):
        return None
    # The header may be repeated where files were joined.
    rows = [row for row in content.rows if any(str(row.fields.get(n, "")).strip() != n for n in names)]
    counts = {name: sum(str(row.fields.get(name)).strip() == name for row in rows) for name in names}
    value = max(names, key=counts.__getitem__)
    values = [n for n in names if not (n.endswith((".", "?", "!")) and len(n.split()) > 2) and len(n) <= 100]
    columns = find_filled_columns(content.rows)
    unnamed_columns = columns & {f"column {place}" for place, _ in enumerate(names, start=1)}
    expected = "a header line that names the columns, such as text,label"
    step = "or where it is one: --prompt COLUMN --reference COLUMN"
    if 2 * len(unnamed_columns) > len(columns):
        found = f"a first line that names {len(columns - unnamed_columns)} of {len(columns)} columns"
        return Problem(f"{content.shown}:1", found, expected, f"delete the lines above it, {step}")
    are_numbers = len(values) < len(names) and all(name.replace(".", "", 1).isdigit() for name in values)
    if counts[value] < 2 and not are_numbers:
        return None
    note = f", which {counts[value]:,} rows hold in that column," if counts[value] > 1 else " and other data"
    found = f"{excerpt(value, 60)!r}{note} where names of columns belong"
    return Problem(f"{content.shown}:1", found, expected, f"add a header line, {step}")


def name_in(template: str | None) -> str:
    """Return the column's name in a template of one column."""
    return template[1:-1] if template and template.startswith("{") else template or ""


def _layout_roles(layout: Layout, names: Collection[str]) -> Roles:
    if layout.name == "multiple choice":
        fields = dict.fromkeys(names, "")
        question, answers = (find_column(fields, usual) or usual[0] for usual in (CHOICE_QUESTIONS, RIGHT))
        return Roles((question, CONTEXT), (answers,))
    if layout.column:
        return Roles((layout.column,), (layout.column,))
    if layout.name == "tokens and tags":
        words, tags = (tuple(n for n in usual if n in names)[:1] for usual in (formats.WORDS, formats.TAGS))
        return Roles(words, tags)
    answer = "answers" if "answers" in names else "answer"
    return _ROLES.get(layout.name, Roles(("question", CONTEXT), (answer,)))


def _pair(row: Row) -> dict[str, Any]:
    """Return the fields of a pair with its question, or the row's fields if it is not a pair."""
    try:
        return read_pair(row).fields
    except UserError:
        return row.fields


def find_by_name(columns: set[str], names: Iterable[str], other_names: Container[str] = ()) -> str | None:
    """Find the column with one of the `names`, or with one as a word, unless its head is in `other_names`."""
    words = {column: re.findall(r"\w+", column.lower()) for column in sorted(columns)}
    heads = {column: find_head(column) for column in words}
    exact_matches = (column for name in names for column in words if words[column] == [name])
    free_columns = [column for column in words if heads[column] not in other_names]
    partial_matches = (c for name in names for c in free_columns if name in words[c] or name == heads[c])
    match = next(exact_matches, None) or next(partial_matches, None)
    return None if match is None else f"{{{match}}}"


def find_head(column: str) -> str:
    """Return the last word of a column's name; for `question_text`, the word before it."""
    words: list[str] = re.findall(r"[^\W_]+", column.lower()) or [""]
    return words[-2] if words[-1] == "text" and len(words) > 1 else words[-1]


def is_id(column: str) -> bool:
    """Tell from its name whether a column, or a part of one, holds ids."""
    return _IDS.fullmatch(column.rpartition(".")[2]) is not None


def column_options(prompt: str | None, reference: str | None) -> list[str]:
    """List the options that name the columns of question and answer, as words of a command."""
    options = (("--prompt", prompt), ("--reference", reference))
    return [word for option, column in options if column for word in (option, column)]
