"""Proposal of a task: its fields, metrics and limits, and a draft of its system text.

The task is read once as a comparison reads it. The draft states the task and the form of the answer, derived
from column names and answers.
"""

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

from harness.data import OF_RATINGS, SPLITS, Notes, TaskItems, load_task, readers
from harness.data.column_roles import CONTEXTS, column_options, find_head, find_reading_roles, option_text
from harness.data.edit.row_files import new_name
from harness.data.examples import FIELD, pairs
from harness.data.guessed_columns import spell
from harness.data.turns import TOOL_USE
from harness.errors import Problem, UserError, as_argument, refuse_unreadable
from harness.experiment.scaffold import recognition
from harness.experiment.scaffold.proposal_files import STEPS
from harness.formatting import count
from harness.models.hub import ModelSource
from harness.records import Example, parse_json
from harness.spec import Fields, Task

FEW, FOLDS = 300, 5  # with fewer rows, all are tested in folds
_UNUSABLE_SHARE = 0.05
_LEAST_TOKENS, _MOST_TOKENS = 64, 256  # of an answer; a prompted base needs room to end a sentence


def propose_task(
    request: recognition.Request, recognized: recognition.RecognizedRows, name: str, base: ModelSource | None
) -> tuple[dict[str, Any], list[str]]:
    """Return the task as a mapping with absolute paths, and variants of its drafted instruction."""
    task: dict[str, Any] = {"name": name, "description": f"the rows of {Path(request.data).name}"}
    data: dict[str, Any] = {"all": recognition.absolute(request.data)}
    has_pairs = recognized.kind == "preference" or recognized.thumbs_down
    pairs = request.pairs or (request.data if has_pairs else None)
    documents = request.documents or (request.data if recognized.kind == "question" else None)
    extra_files = {"pairs": pairs, "documents": documents}
    data |= {key: recognition.absolute(path) for key, path in extra_files.items() if path}
    data |= {"invalid_rows": "drop"} if recognized.thumbs_down else {}  # they are not right answers
    limits = {split: getattr(STEPS[0], split) for split in SPLITS}
    task["data"] = data | ({"limits": limits} if len(recognized.rows) > sum(limits.values()) else {})
    if recognized.fields:
        task["fields"] = recognized.fields
    content = readers.Rows(recognized.shown, "row", recognized.rows)
    reading = Task.model_validate({**task, "data": {"invalid_rows": "drop"}})
    sourced = recognition.examples_of(reading, content)
    if where := next((row.where for row in sourced if not row.example.references), ""):
        found, expected = "constraints and no reference", "an answer to show and to train on"
        step = "add references, or write a suite with metrics: [follows], on which nothing is trained"
        raise UserError(where, found, expected, step)
    examples = [row.example for row in sourced]
    if recognized.layout and recognized.layout.column:
        columns = PromptColumns(("messages",), "messages")
    elif recognized.layout and recognized.layout.name == "tokens and tags":
        columns = PromptColumns(("text",), "entities")
    else:
        names = dict.fromkeys(key for row in recognized.rows for key in row.fields)
        roles = find_reading_roles(reading, recognized.layout, names)
        asking = FIELD.findall(recognized.fields.get("prompt", ""))
        asking = asking or [name for name in names if name in roles.questions]
        answer = FIELD.findall(recognized.fields.get("reference", "")) or roles.answers
        columns = PromptColumns(tuple(asking), next(iter(answer), ""))
    answers, references = recognized.answers, [max(example.references, key=len) for example in examples]
    metrics = _METRICS[answers.form]
    if is_rating(columns, answers.labels):
        metrics = ["exact_match", *OF_RATINGS]
    elif answers.form == "sql" and find_spec("sqlglot"):
        metrics = ["sql_match", "token_f1"]
    elif answers.form in ("short", "long"):  # word overlap needs Latin script
        letters = [sign for text in references[:200] for sign in text if sign.isalpha()]
        metrics = metrics if 2 * sum(sign < "ɐ" for sign in letters) >= len(letters) else ["chrf"]
    task["metrics"] = metrics
    if answers.form == "choice":
        chance = fmean(1 / len(example.choices) for example in examples)
        task |= {"kind": "choice", "chance": round(chance, 4)}
    else:  # 1.5 times the tokens of the longer answers
        is_whole = answers.form in ("labels", "calls", "json", "spans", "sql", "joined labels")
        lengths = sorted(count_tokens(references, base))
        longer = lengths[int((1.0 if is_whole else 0.95) * (len(lengths) - 1))]
        task["max_new_tokens"] = min(_MOST_TOKENS, max(_LEAST_TOKENS, -(-3 * longer // 16) * 8))
        task |= {"labels": list(answers.labels)} if answers.form == "labels" else {}
        task |= {"truncated_scores": True} if answers.form == "long" else {}
    systems = (m["content"] for example in examples for m in example.messages if m["role"] == "system")
    if request.instruction:
        return {**task, "system": request.instruction}, []
    if not all(text.startswith(TOOL_USE) for text in systems):  # the rows have their own instructions
        return task, []
    draft = draft_instruction(recognized.answers, columns, examples)
    short, _, reply = draft.partition(" Reply with ")
    if _LISTED in reply:
        listed = reply.partition(f"{_LISTED} ")[2]
        short = f"The labels are: {listed}\n{short} Reply with the one that fits best, as it is spelt above."
    elif recognized.answers.form == "joined labels":
        short = draft  # it names the labels
    role = f"You are an expert, and your answers are used as they stand. {draft}"
    stressed = _STRESSED.get(recognized.answers.form, "Give the answer alone, without any other word.")
    variants = dict.fromkeys((role, f"{draft} {stressed}", short))
    return {**task, "system": draft}, [text for text in variants if text != draft]


_METRICS: dict[recognition.AnswerForm, list[str]] = {
    "choice": ["accuracy", "bits_per_byte"],
    "labels": ["exact_match", "macro_f1"],
    "calls": ["tool_call", "token_f1"],
    "json": ["json_fields", "json_valid"],
    "spans": ["span_f1", "json_valid"],
    "reasoned": ["final_answer", "token_f1"],
    "joined labels": ["token_f1", "exact_match"],
    "sql": ["exact_match", "token_f1"],
    "number": ["exact_match", "token_f1"],  # word overlap would read 1.5 as 15, and a unit as half an answer
    "short": ["token_f1", "exact_match"],
    "long": ["token_f1", "rouge"],
}


def count_tokens(texts: Sequence[str], base: ModelSource | None) -> list[int]:
    """Count the tokens of whole texts by the base's tokenizer; without it, estimate from characters."""
    file = base.path / "tokenizer.json" if base else None
    if file is None or not file.is_file():
        # At most one token per three English letters, and one per other byte: byte-level BPE needs up to a
        # token per byte in scripts rare in its training (Petrov et al. 2023, arXiv:2305.15425), and many
        # tokenizers need one per digit.
        n_plain = [sum(s.isascii() and (s.isalpha() or s.isspace()) for s in text) for text in texts]
        return [-(-n // 3) + len(text.encode()) - n for n, text in zip(n_plain, texts, strict=True)]
    from tokenizers import Tokenizer

    with refuse_unreadable(file, "a file that save_pretrained wrote", "save or fetch the tokenizer again"):
        tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()  # the file may enable both
    tokenizer.no_padding()
    return [len(encoded.ids) for encoded in tokenizer.encode_batch([*texts], add_special_tokens=False)]


def check_task(task: dict[str, Any], *, has_thumbs: bool) -> tuple[Task, TaskItems, str]:
    """Read the data as `compare` does; drop a few unusable rows, refuse more.

    With `has_thumbs`, answers with a thumb are usable too. A small set is tested in folds; if that is
    impossible, the reason is returned.
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
        usable = {row.where for row in recognition.examples_of(read_as, content)}
        usable |= {row.where for row in pairs(read_as, content, Notes([], []))} if has_thumbs else set()
        n_rows, n_unusable = len(content.rows), len(content.rows) - len(usable)
        if n_unusable > _UNUSABLE_SHARE * n_rows:
            shown_file = readers.display_path(read_as.data.source("train") or "")
            fields, usual = read_as.fields, Fields()
            columns = option_text(fields.prompt, usual.prompt), option_text(fields.reference, usual.reference)
            new = new_name(shown_file, "clean")
            command = ["harness", "data", "clean", shown_file, *column_options(*columns), "--out", new]
            found = f"{n_unusable:,} of {n_rows:,} rows that cannot be used"
            step = f"{shlex.join(command)}, then --data {as_argument(new)}"
            raise UserError([*problems, Problem(shown_file, found, "fewer than one in twenty", step)])
    if sum(len(getattr(items, split)) for split in SPLITS) >= FEW:
        return read_as, items, ""
    folded = read_as.model_copy(update={"data": read_as.data.model_copy(update={"folds": FOLDS})})
    try:
        return folded, load_task(folded, 0), ""
    except UserError as error:
        return read_as, items, error.problems[0].found


RATINGS = ("rating", "ratings", "stars", "star", "score", "grade", "points")
_MOST_LISTED = 2_000  # characters of labels that a prompt lists
_MOST_VALUES = 12  # different values of a key that a prompt lists
_NOTHING_ELSE = "and nothing else"
_LISTED = f"{_NOTHING_ELSE}:"  # precedes labels
_QUESTIONS = ("question", "questions", "query", "nl")
_NOUNS = (
    *("review", "dialogue", "conversation", "article", "document", "message", "email", "ticket", "tweet"),
    *("comment", "post", "passage", "story", "description", "utterance", "sentence", "problem", "report"),
    *("note", "abstract", "letter", "complaint", "request", "instruction", "headline", "premise", "goal"),
    "essay",
)
_OTHER_NOUNS = {"body": "message", "subject": "message", "prompt": "request", "inputs": "request"}
_OTHER_NOUNS |= {"messages": "message", "conversations": "message"}
_GENERIC = (
    *("label", "labels", "category", "class", "target", "targets", "answer", "answers", "tags"),
    *("reference", "output"),
    *("response", "completion", "references", "messages", "conversations", "chosen", "decision", "value"),
)
_SUMMARIES = ("summary", "highlights", "abstract", "tldr", "headline", "title")
_CODE = ("code", "program", "function", "script")
_LANGUAGES = dict(
    re.findall(
        r"(\w+)=(\w+)",
        "ar=Arabic bg=Bulgarian cs=Czech da=Danish de=German el=Greek en=English es=Spanish et=Estonian"
        " fa=Persian fi=Finnish fr=French he=Hebrew hi=Hindi hr=Croatian hu=Hungarian id=Indonesian"
        " it=Italian ja=Japanese ko=Korean lt=Lithuanian lv=Latvian nl=Dutch no=Norwegian pl=Polish"
        " pt=Portuguese ro=Romanian ru=Russian sk=Slovak sl=Slovenian sv=Swedish th=Thai tr=Turkish"
        " uk=Ukrainian vi=Vietnamese zh=Chinese",
    )
)


class PromptColumns(NamedTuple):
    """Columns that a prompt shows, in order, and the answer column, as dotted paths if nested."""

    questions: tuple[str, ...]
    answer: str

    @property
    def noun(self) -> str:
        """Noun for the input: the question, the review, the dialogue."""
        heads = [find_head(part).rstrip("12") for name in self.questions for part in name.split(".")]
        if any(head in _QUESTIONS for head in heads):
            return "question"
        words = [word for name in reversed(self.questions) for word in re.findall(r"[a-z]+", name.lower())]
        known_noun = next((word for word in words if word in _NOUNS), None)
        return known_noun or next((_OTHER_NOUNS[word] for word in words if word in _OTHER_NOUNS), "text")

    @property
    def compared(self) -> str:
        """Phrase for the input, or for two compared inputs, as in `text1` and `text2`."""
        stems = {name[:-1] for name in self.questions if name[-1:] in "12ab"}
        return f"the two {self.noun}s" if len(stems) == 1 < len(self.questions) else f"the {self.noun}"

    @property
    def task(self) -> str:
        """Sentence that asks for an answer, from the context if there is one."""
        heads = [find_head(name.partition(".")[0]) for name in self.questions]
        held = next((head for head in heads if head in CONTEXTS), "")
        name = held if held in _NOUNS or held == "schema" else "context"
        return f"Answer the question{f' from the {name}' if held else ''}"


def draft_instruction(
    answers: recognition.Answers, columns: PromptColumns, examples: Sequence[Example]
) -> str:
    """Return an instruction as a practitioner would write it."""
    references = [max(example.references, key=len) for example in examples if example.references]
    if answers.form == "labels":
        if is_rating(columns, answers.labels):
            steps = sorted(answers.labels, key=float)
            scale = f"on a scale from {steps[0]} (lowest) to {steps[-1]} (highest)"
            return f"Rate the {columns.noun} {scale}. Reply with the number {_NOTHING_ELSE}."
        listed = ", ".join(answers.labels)
        if len(listed) > _MOST_LISTED:
            return f"{_classify(columns)} Reply with the name of the category {_NOTHING_ELSE}."
        return f"{_classify(columns)} Reply with one of these labels {_LISTED} {listed}."
    if answers.form == "joined labels":
        several = f"{_classify(columns)} Reply with all that apply of: {', '.join(answers.labels)}."
        return f"{several} Write {answers.separator!r} between them."
    if answers.form == "choice":
        return f"{columns.task}." if columns.noun == "question" else f"Complete the {columns.noun}."
    names = [name.rpartition(".")[2].lower() for name in (*columns.questions[-1:], columns.answer)]
    languages = [_LANGUAGES.get(name, name.title()) for name in names]
    if len(languages) == 2 and {*languages} <= {*_LANGUAGES.values()}:  # columns such as `translation.de`
        source, target = languages
        return f"Translate the text from {source} to {target}. Reply with the translation {_NOTHING_ELSE}."
    if answers.form == "calls":
        return f"Call the tools that the request needs. Reply with the calls {_NOTHING_ELSE}."
    if answers.form == "reasoned" and any("\\boxed{" in text for text in references):
        return "Think step by step, and write the final answer into \\boxed{} at the end."
    if answers.form == "reasoned":
        return "Think step by step, then write the final answer on a last line of its own, behind ####."
    if answers.form == "sql":
        heads = [head for head in map(find_head, columns.questions) if head in ("schema", "context")]
        tables = f" on the tables of the {heads[0]}" if heads else ""
        query = f"Write one SQL query{tables} that answers the question."
        return f"{query} Reply with the query {_NOTHING_ELSE}."
    if answers.form in ("json", "spans"):
        return _ask_for_json(columns, references)
    return _ask_for_text(columns, references, are_numbers=answers.form == "number")


_STRESSED: dict[recognition.AnswerForm, str] = {
    "reasoned": "Keep each step to one short line, and check the result before you write it.",
    "long": "Begin at once: no greeting, no remark on the task, no heading.",
    **dict.fromkeys(("sql", "json", "spans", "calls"), "Begin at once: no explanation, no code fence."),
}


def is_rating(columns: PromptColumns, labels: Sequence[str]) -> bool:
    """Tell whether labels are ratings: whole or half steps in a rating column, or of reviews."""
    are_steps = len(labels) > 2 and all(re.fullmatch(r"\d+(\.[05]0*)?", label) for label in labels)
    is_of_review = columns.noun == "review" and "0" not in labels
    return are_steps and (find_head(columns.answer) in RATINGS or is_of_review)


def _classify(columns: PromptColumns) -> str:
    if {"premise", "hypothesis"} <= {find_head(name) for name in columns.questions}:
        return "Decide whether the hypothesis follows from the premise."
    if columns.noun == "question" and re.search("answer|decision", columns.answer):
        return f"{columns.task}."
    if columns.compared.startswith("the two"):
        return f"Compare {columns.compared}."
    is_word = re.fullmatch(r"[^\W\d]{3,}", columns.answer.replace(" ", "_")) is not None
    by = f" by its {spell(columns.answer)}" if is_word and find_head(columns.answer) not in _GENERIC else ""
    return f"Classify {columns.compared}{by}."


def _ask_for_json(columns: PromptColumns, references: Sequence[str]) -> str:
    parsed: list[Any] = [parse_json(text) for text in references]
    are_lists = any(isinstance(value, list) for value in parsed)
    entries = [entry for value in parsed for entry in (value if isinstance(value, list) else [value])]
    objects = [entry for entry in entries if isinstance(entry, dict)]
    keys = []
    for key in dict.fromkeys(key for entry in objects for key in entry):
        values = [entry[key] for entry in objects if key in entry]
        texts = Counter(value for value in values if isinstance(value, str))
        is_whole = 1 < len(texts) <= min(_MOST_VALUES, len(values) // 10) and texts.total() == len(values)
        listed = is_whole and max(map(len, texts)) <= 30
        keys.append(f"{key} (one of {' | '.join(sorted(texts))})" if listed else key)
    keys_text = f" with the keys {', '.join(keys)}" if keys else ""
    wording = "the data" if find_head(columns.answer) in _GENERIC else f"the {spell(columns.answer)}"
    form = f"a JSON list{' of objects' if objects else ''}" if are_lists else "one JSON object"
    none = "; an empty list where there are none" if are_lists else ""
    wording = f"Extract {wording} from the {columns.noun} as {form}{keys_text}{none}"
    return f"{wording}. Reply with the JSON {_NOTHING_ELSE}."


_NUMBER = re.compile(r"\W*?(-?\d+(?:\.\d+)?)")


def _ask_for_text(columns: PromptColumns, references: Sequence[str], *, are_numbers: bool) -> str:
    head, n = find_head(columns.answer), median(len(text.split()) for text in references)
    if are_numbers:
        values = [float(number[1]) for text in references if (number := _NUMBER.match(text))]
        alone = all(_NUMBER.fullmatch(text.strip()) for text in references)
        ends = f", between {min(values):g} and {max(values):g}," if values and alone else ""
        name = "value" if head in _GENERIC else spell(columns.answer)
        wording = f"Estimate the {name} from {columns.compared}"
        wording = columns.task if columns.noun == "question" else wording
        unit = "" if alone else " with its unit"
        return f"{wording}. Reply with one number{unit}{ends} {_NOTHING_ELSE}."
    length = f"in about {count(5 * round(n / 5) if n < 50 else 10 * round(n / 10))} words"
    length = "in a few words" if n <= 8 else length
    if head in _SUMMARIES:
        noun = head if head in ("headline", "title") else "summary"
        verb = "Summarize" if noun == "summary" else f"Write a {noun} for"
        return f"{verb} the {columns.noun} {length}. Reply with the {noun} {_NOTHING_ELSE}."
    if head in _CODE:
        return f"Write the {head} that is asked for. Reply with the {head} {_NOTHING_ELSE}."
    if columns.noun == "question":
        return f"{columns.task} {length}. Reply with the answer {_NOTHING_ELSE}."
    if columns.noun == "instruction":
        return f"Follow the instruction. Reply {length}."
    if columns.noun in ("message", "request", "email", "ticket", "letter", "utterance"):
        return f"Reply to the {columns.noun} {length}, {_NOTHING_ELSE}."
    if head in _GENERIC:
        return f"Answer the {columns.noun} {length}. Reply with the answer {_NOTHING_ELSE}."
    noun = spell(columns.answer)
    return f"Write the {noun} to the {columns.noun} {length}. Reply with the {noun} {_NOTHING_ELSE}."
