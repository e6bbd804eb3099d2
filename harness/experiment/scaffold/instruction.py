"""Draft of a task's system text from the names of its columns and its answers: what to do, in which form."""

import re
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from harness.data.columns import CONTEXTS, find_head
from harness.data.guessed_columns import spell
from harness.experiment.scaffold.recognition import AnswerForm, Answers
from harness.formatting import count
from harness.records import Example, parse_json

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
    """Columns that a prompt shows, in their order, and the one that answers; of nested ones all parts."""

    questions: tuple[str, ...]
    answer: str

    @property
    def noun(self) -> str:
        """Noun for the input: the question, the review, the dialogue."""
        heads = [find_head(part).rstrip("12") for name in self.questions for part in name.split(".")]
        if any(head in _QUESTIONS for head in heads):
            return "question"
        words = [word for name in reversed(self.questions) for word in re.findall(r"[a-z]+", name.lower())]
        known = next((word for word in words if word in _NOUNS), None)
        return known or next((_OTHER_NOUNS[word] for word in words if word in _OTHER_NOUNS), "text")

    @property
    def task(self) -> str:
        """Sentence that asks for an answer, from the context if there is one."""
        heads = [find_head(name.partition(".")[0]) for name in self.questions]
        held = next((head for head in heads if head in CONTEXTS), "")
        name = held if held in _NOUNS or held == "schema" else "context"
        return f"Answer the question{f' from the {name}' if held else ''}"


def draft_instruction(answers: Answers, columns: PromptColumns, examples: Sequence[Example]) -> str:
    """Write what a practitioner would ask with."""
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
    found = [_LANGUAGES.get(name, name.title()) for name in names]
    if len(found) == 2 and {*found} <= {*_LANGUAGES.values()}:  # from columns such as `translation.de`
        source, target = found
        return f"Translate the text from {source} to {target}. Reply with the translation {_NOTHING_ELSE}."
    if answers.form == "calls":
        return f"Call the tools that the request needs. Reply with the calls {_NOTHING_ELSE}."
    if answers.form == "reasoned" and any("\\boxed{" in text for text in references):
        return "Think step by step, and write the final answer into \\boxed{} at the end."
    if answers.form == "reasoned":
        return "Think step by step, then write the final answer on a last line of its own, behind ####."
    if answers.form == "sql":
        held = next((h for h in map(find_head, columns.questions) if h in ("schema", "context")), "")
        tables = f" on the tables of the {held}" if held else ""
        query = f"Write one SQL query{tables} that answers the question."
        return f"{query} Reply with the query {_NOTHING_ELSE}."
    if answers.form in ("json", "spans"):
        return _ask_for_json(columns, references)
    return (_ask_for_number if answers.form == "number" else _ask_for_text)(columns, references)


def vary_instruction(draft: str, answers: Answers) -> list[str]:
    """Write a draft in other words: with a role, with its form stressed, and in short or labels first."""
    short, _, reply = draft.partition(" Reply with ")
    if _LISTED in reply:
        listed = reply.partition(f"{_LISTED} ")[2]
        short = f"The labels are: {listed}\n{short} Reply with the one that fits best, as it is spelt above."
    elif answers.form == "joined labels":
        short = draft  # which names the labels
    role = f"You are an expert, and your answers are used as they stand. {draft}"
    stressed = f"{draft} {_STRESSED.get(answers.form, 'Give the answer alone, without any other word.')}"
    return [text for text in dict.fromkeys((role, stressed, short)) if text != draft]


_STRESSED: dict[AnswerForm, str] = {
    "reasoned": "Keep each step to one short line, and check the result before you write it.",
    "long": "Begin at once: no greeting, no remark on the task, no heading.",
    **dict.fromkeys(("sql", "json", "spans", "calls"), "Begin at once: no explanation, no code fence."),
}


def is_rating(columns: PromptColumns, labels: Sequence[str]) -> bool:
    """Tell whether numeric labels are ratings rather than codes: named as such, or of reviews.

    Ratings have whole or half steps, and those of reviews start at 1 or 0.5.
    """
    are_steps = len(labels) > 2 and all(re.fullmatch(r"\d+(\.[05]0*)?", label) for label in labels)
    return are_steps and (
        find_head(columns.answer) in RATINGS or (columns.noun == "review" and "0" not in labels)
    )


def _classify(columns: PromptColumns) -> str:
    heads = {find_head(name) for name in columns.questions}
    if {"premise", "hypothesis"} <= heads:
        return "Decide whether the hypothesis follows from the premise."
    if columns.noun == "question" and re.search("answer|decision", columns.answer):
        return f"{columns.task}."
    what = _name_compared(columns)
    is_word = re.fullmatch(r"[^\W\d]{3,}", columns.answer.replace(" ", "_")) is not None
    if what.startswith("the two"):
        return f"Compare {what}."
    by = f" by its {spell(columns.answer)}" if is_word and find_head(columns.answer) not in _GENERIC else ""
    return f"Classify {what}{by}."


def _name_compared(columns: PromptColumns) -> str:
    is_pair = (
        len({name[:-1] for name in columns.questions if name[-1:] in "12ab"}) == 1 < len(columns.questions)
    )
    return f"the two {columns.noun}s" if is_pair else f"the {columns.noun}"


def _ask_for_json(columns: PromptColumns, references: Sequence[str]) -> str:
    read: list[Any] = [parse_json(text) for text in references]
    are_lists = any(isinstance(value, list) for value in read)
    entries = [entry for value in read for entry in (value if isinstance(value, list) else [value])]
    objects = [entry for entry in entries if isinstance(entry, dict)]
    keys = []
    for key in dict.fromkeys(key for entry in objects for key in entry):
        values = [entry[key] for entry in objects if key in entry]
        texts = Counter(value for value in values if isinstance(value, str))
        is_whole = 1 < len(texts) <= min(_MOST_VALUES, len(values) // 10) and texts.total() == len(values)
        listed = is_whole and max(map(len, texts)) <= 30
        keys.append(f"{key} (one of {' | '.join(sorted(texts))})" if listed else key)
    named = f" with the keys {', '.join(keys)}" if keys else ""
    what = "the data" if find_head(columns.answer) in _GENERIC else f"the {spell(columns.answer)}"
    form = f"a JSON list{' of objects' if objects else ''}" if are_lists else "one JSON object"
    none = "; an empty list where there are none" if are_lists else ""
    return (
        f"Extract {what} from the {columns.noun} as {form}{named}{none}. Reply with the JSON {_NOTHING_ELSE}."
    )


_NUMBER = re.compile(r"\W*?(-?\d+(?:\.\d+)?)")


def _ask_for_number(columns: PromptColumns, references: Sequence[str]) -> str:
    values = [float(found[1]) for text in references if (found := _NUMBER.match(text))]
    alone = all(_NUMBER.fullmatch(text.strip()) for text in references)
    ends = f", between {min(values):g} and {max(values):g}," if values and alone else ""
    unit = "number" if alone else "number with its unit"
    what = f"Estimate the {_name_answer(columns)} from {_name_compared(columns)}"
    what = columns.task if columns.noun == "question" else what
    return f"{what}. Reply with one {unit}{ends} {_NOTHING_ELSE}."


def _ask_for_text(columns: PromptColumns, references: Sequence[str]) -> str:
    head, length = find_head(columns.answer), _describe_length(references)
    if head in _SUMMARIES:
        made = head if head in ("headline", "title") else "summary"
        what = "Summarize" if made == "summary" else f"Write a {made} for"
        return f"{what} the {columns.noun} {length}. Reply with the {made} {_NOTHING_ELSE}."
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
    made = _name_answer(columns)
    return f"Write the {made} to the {columns.noun} {length}. Reply with the {made} {_NOTHING_ELSE}."


def _name_answer(columns: PromptColumns) -> str:
    return "value" if find_head(columns.answer) in _GENERIC else spell(columns.answer)


def _describe_length(references: Sequence[str]) -> str:
    n = median(len(text.split()) for text in references)
    if n <= 8:
        return "in a few words"
    return f"in about {count(5 * round(n / 5) if n < 50 else 10 * round(n / 10))} words"
