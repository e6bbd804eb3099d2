"""Shares of answers that match a reference: as a whole, by their first line or final answer, or by its words.

Invariant: what `records.normalize` folds never decides: case, spacing, typography, surrounding quotes and a
final full stop.
"""

import re
import unicodedata
from dataclasses import replace

from harness.metrics import mean_metric, normalize
from harness.records import Example, Output, compose_letters, fold_text, is_unspaced, split_into_letters


def _matches(output: Output, example: Example) -> float:
    return float(normalize(output.text) in map(normalize, example.references))


class ExactMatch:
    """Share of answers that are one of the references."""

    SHORT = "EM"
    READS_WHOLE = True  # an answer that is a label and nothing else
    IS_SHARE_OF_RIGHT_LABELS = True
    metric = mean_metric("exact_match", _matches)


class Accuracy:
    """Share of items whose chosen choice is the right one.

    Choices that differ only in letter case or in a final period stay different.
    """

    SHORT = "acc"
    IS_SHARE_OF_RIGHT_LABELS = True

    @staticmethod
    def _score(output: Output, example: Example) -> float:
        if output.text in example.choices:
            return float(output.text in example.references)
        return _matches(output, example)

    metric = mean_metric("accuracy", _score)


def _first_line(text: str) -> str:
    return next(filter(None, map(normalize, text.splitlines())), "")


class FirstLine:
    """Share of answers whose first line is one of the references, whatever follows.

    Lines without a word do not count. Answers that are none of the labels as a whole are read too.
    """

    IS_SHARE_OF_RIGHT_LABELS = True

    @staticmethod
    def _score(output: Output, example: Example) -> float:
        return float(_first_line(output.text) in set(map(normalize, example.references)))

    metric = replace(mean_metric("first_line", _score), same=_first_line, reads_any=True)


def _contains(output: Output, example: Example) -> float:
    phrases, answer = [normalize(reference) for reference in example.references], fold_text(output.text)
    if is_unspaced(phrases):
        answer, *phrases = (" ".join(split_into_letters(text).split()) for text in (answer, *phrases))
    for phrase in filter(None, phrases):
        at = answer.find(phrase)
        while at >= 0:
            if not (_is_of_word(answer[max(at - 1, 0) : at]) or _is_of_word(answer[at + len(phrase) :][:1])):
                return 1.0
            at = answer.find(phrase, at + 1)
    return 0.0


def _is_of_word(sign: str) -> bool:
    return sign.isalnum() or sign == "_" or (bool(sign) and unicodedata.category(sign).startswith("M"))


class Contains:
    """Share of answers in which a reference occurs as whole words.

    "cat" is not in "category". If a reference has letters of a script without blanks (Chinese, Japanese,
    Thai …), each of these letters is a word.
    """

    WORDS_ARE_LETTERS = True  # where references are of a script without blanks
    metric = mean_metric("contains", _contains)


_WORDS = (
    "(?:(?:the |my )?(?:final |correct )?answer"
    "|(?:die |meine )?(?:richtige |endgültige )?antwort|(?:la )?réponse(?: finale)?"
    "|(?:la )?respuesta(?: final)?"
    "|(?:la )?risposta(?: finale)?|(?:a )?resposta(?: final)?|(?:het )?antwoord|svar(?:et)?|odpowiedź|cevap"
    "|(?:окончательный )?ответ|答案|最终答案|最終答案|答え|回答|정답|답)"
)
_IS = "(?:is|ist|est|es|è|é|är|er|jest|是|は)"
_MARKS = "[*_`]*"
_COLON = rf"(?: {_IS})?{_MARKS}\s*[:：](?:\*\*|__|\*)?"
_WITH_COLON = re.compile(rf"(?:{_WORDS}){_MARKS}{_COLON}\s*", re.IGNORECASE)
_LABEL = re.compile(rf"(?<!\w)(?:{_WORDS}{_MARKS}(?:{_COLON}| {_IS}(?!\w)|是|は))\s*", re.IGNORECASE)
_HEADING = re.compile(r"#{2,6}\s+")
_NUMBER = re.compile(r"####\s*([-+−$€£]?\d[\d.,]*)\s*%?")
_WORD = re.compile(r"\w")
_HOPE = re.compile(r"(?<=[.$])\s*I hope it is correct\.?\**$", re.IGNORECASE)
_BOX = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"[{}]")
_IN_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}")
_LETTER = re.compile(r"\(?([A-Za-z])\)")


def final_answer(text: str) -> str:
    """Return the normalised final answer of a text (see `FinalAnswer`)."""
    text = compose_letters(text)
    starts = {match.end() for match in _BOX.finditer(text)}
    open_starts, last_box = list[int](), (-1, "")  # content of the last `\boxed{…}` with balanced braces
    for brace in _BRACE.finditer(text) if starts else ():
        if brace[0] == "{":
            open_starts.append(brace.end())
        elif open_starts and (start := open_starts.pop()) in starts:
            last_box = max(last_box, (start, text[start : brace.start()]))
    if last_box[0] >= 0:
        return _undress(last_box[1])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked_text = next((t for line in reversed(lines) if (t := _find_marked(line))), None)
    last = _bare(_HEADING.sub("", lines[-1], count=1)) if lines else ""
    final_text = _HOPE.sub("", marked_text or last)
    after_label = _LABEL.split(final_text)[-1]
    return _undress(after_label if after_label.strip("*_` .。") else final_text)


def _find_marked(line: str) -> str | None:
    """Return the number after `####`, or the text after a label and colon at the start of a line."""
    if number := _NUMBER.fullmatch(line):
        return number[1]
    bare = _bare(_HEADING.sub("", line, count=1)).lstrip("*")
    label = _WITH_COLON.match(bare)
    after_label = bare[label.end() :] if label else ""
    return after_label if after_label.strip("*_` ") else None


def _undress(answer: str) -> str:
    """Strip an answer's decoration: emphasis, dollar signs, brackets around a letter, a final period."""
    plain = _bare(_IN_TEXT.sub(r"\1", answer).strip())
    bare = _bare(plain.rstrip(".。").strip()).rstrip(".。")
    if len(bare) > 2 and bare[0] == bare[-1] == "$":
        bare = bare[1:-1].strip()
    if letter := _LETTER.fullmatch(bare):
        bare = letter[1]
    return normalize(bare or plain)


def _bare(text: str) -> str:
    """Strip asterisks or backticks around a whole text that contains a word."""
    for mark in ("***", "**", "*", "`"):
        inner = text[len(mark) : -len(mark)]
        is_pair = text.startswith(mark) and text.endswith(mark) and inner == inner.strip()
        if is_pair and _WORD.search(inner):
            return _bare(inner)
    return text


class FinalAnswer:
    r"""Share of answers whose final answer, after a chain of thought, is one of the references.

    The final answer is the content of the last `\boxed{…}`; else what follows `####` or a label with a colon
    (`Answer:`) in the last line that begins so; else the last line, without decoration. An answer of one
    plain line scores as by exact match; an empty one is never right.
    Source: Wei et al. 2022, arXiv:2201.11903; Wang et al. 2023, arXiv:2203.11171 (majority); `####` as
    in GSM8K (Cobbe et al. 2021, arXiv:2110.14168), `\boxed` as in MATH (Hendrycks et al. 2021,
    arXiv:2103.03874).
    """

    IS_SHARE_OF_RIGHT_LABELS = True

    @staticmethod
    def _score(output: Output, example: Example) -> float:
        answer = final_answer(output.text)
        return float(bool(answer) and answer in map(final_answer, example.references))

    metric = replace(mean_metric("final_answer", _score), same=final_answer)


PLUGINS = {
    "exact_match": ExactMatch,
    "accuracy": Accuracy,
    "first_line": FirstLine,
    "contains": Contains,
    "final_answer": FinalAnswer,
}
