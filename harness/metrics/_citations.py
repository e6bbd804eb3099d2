"""Citations in an answer, and the passages of its prompt that they name (forms: docs/howto/data.md).

Invariant: a citation counts for what the prompt shows under its mark and for nothing else; text in brackets
that does not look like a mark of the prompt is not a citation.
Source: Gao et al. 2023 (ALCE), arXiv:2305.14627, section 4.3; here the item names the documents that support
an answer, where ALCE asks an entailment model.
"""

import re
from collections.abc import Iterator, Mapping

from harness.records import Example, map_passage_marks

Marks = Mapping[str, str]

BRACKETS = re.compile(r"\[([^\[\]]+)\](?!\()")
_BEHIND_A_PERIOD = re.compile(r"([.!?])\s*((?:\[[^\[\]]+\]\s*)+)")
_END = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"\w")
_ASCII = str.maketrans("【】［］（）０１２３４５６７８９", "[][]()0123456789")
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_SUPERSCRIPT = re.compile(r"(?:(?<=[.,;:!?\"'”’»。，])|(?<=[^\W\d_]{3}))([⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
_UNIT = re.compile(r"(?:met(?:re|er)s?|miles?|feet|foot|inch(?:es)?|yards?)$", re.IGNORECASE)
_ENDS = re.compile(r"\[(\d{1,3})\]\s*[-–]\s*\[(\d{1,3})\]")
_TAGGED = re.compile(r"<sup>([^<>]{1,80})</sup>")
_PARENTHESES = re.compile(r"(?<=\S)(\s*)\(([^()\n]+)\)(?=(\s*(?:[.,;:!?。，；)]|\(|$))?)", re.MULTILINE)
_LABELS = "sources?|references?|citations?|quellen?|fuentes?|fontes?|fonti|bron(?:nen)?|来源|出典"
_SOURCE = re.compile(rf"\(?(?<!\[)\b(?:{_LABELS})\s*[:：]\s*((?:[^\n.()]|\.(?=\S))+)\)?", re.IGNORECASE)
_SEPARATOR = re.compile(r"[,;，；、]|\s+(?:and|&)\s+")
_NAMED = re.compile(
    rf"((?:{_LABELS}|(?:passage|document|context)s?|docs?\.?|refs?\.?|cite)(?:\s*[:：]\s*|\s+|(?=[#\d])))?"
    r"[#^]?\s*(.+?)\^?",
    re.IGNORECASE,
)
_RANGE = re.compile(r"(\d{1,3})\s*(?:[-–]|to|through)\s*(\d{1,3})")


def precision(answer: str, example: Example) -> float:
    """Return the share of citations that name a needed passage of the prompt; 0 without citations."""
    # If the item names no documents, every passage of the prompt counts as needed.
    marks = map_passage_marks(example)
    cited = set(_find_cited(answer, marks))
    needed = [mark in marks and (not example.documents or marks[mark] in example.documents) for mark in cited]
    return sum(needed) / len(cited) if cited else 0.0


def recall(answer: str, example: Example) -> float:
    """Return the share of needed documents that are cited from the prompt."""
    # If the item names none, it is the share of sentences that cite a passage of the prompt.
    marks = map_passage_marks(example)
    if needed := set(example.documents):
        return len({marks.get(mark) for mark in _find_cited(answer, marks)} & needed) / len(needed)
    found = list(sentences(_bracket_citations(answer, marks)))
    supported = [any(mark in marks for mark in _find_cited(one, marks)) for one in found]
    return sum(supported) / len(supported) if supported else 0.0


def _find_cited(text: str, marks: Marks) -> Iterator[str]:
    for inside in BRACKETS.findall(_bracket_citations(text, marks)):
        yield from _marks_of(inside, marks)


def _bracket_citations(text: str, marks: Marks) -> str:

    def read_superscript(found: re.Match[str]) -> str:
        number = found[1].translate(_RAISED)
        if _UNIT.search(found.string, max(0, found.start() - 12), found.start()):
            return found[0]
        if number in marks:
            return f"[{number}]"
        return "".join(f"[{one}]" for one in number) if all(one in marks for one in number) else found[0]

    def read_behind_label(found: re.Match[str]) -> str:
        if BRACKETS.search(found[1]):
            return found[1]
        return f"[{found[1]}]" if [*_marks_of(found[1], marks)] else found[0]

    def read_parentheses(found: re.Match[str]) -> str:  # numbers that are no marks belong to the text
        # Without a label they count only at the end of a clause, because `(1)` before a word numbers a list.
        named = [_cut_label(one.strip()) for one in _SEPARATOR.split(found[2])]
        labelled = any(label for _, label in named)
        is_cited = all((mark.isdecimal() and mark in marks) or _ends_of(mark, marks) for mark, _ in named)
        if is_cited and (labelled or found[3] is not None):
            return f"{found[1]}[{', '.join(mark for mark, _ in named)}]"
        return found[0]

    def keep_marks(found: re.Match[str]) -> str:  # drop other words, which may contain the end of a sentence
        named = [*_marks_of(found[1], marks)]
        return f"[{', '.join(named)}]" if named else found[0]

    text = _TAGGED.sub(r"[\1]", text.translate(_ASCII))
    text = _SUPERSCRIPT.sub(read_superscript, text)
    text = _SOURCE.sub(read_behind_label, text)
    text = _PARENTHESES.sub(read_parentheses, text)
    text = _ENDS.sub(r"[\1-\2]", text)
    return BRACKETS.sub(keep_marks, text)


def _marks_of(inside: str, marks: Marks) -> Iterator[str]:
    numbered = all(mark.isdecimal() for mark in marks)
    whole = inside.strip()
    for written in [whole] if whole in marks else map(str.strip, _SEPARATOR.split(whole.partition("†")[0])):
        mark, label = (written, "") if written in marks else _cut_label(written)
        if label and mark not in marks:
            mark = mark.partition(":")[0].strip()  # the mark precedes a title
        if numbered and (ends := _ends_of(mark, marks)):
            yield from map(str, range(ends[0], ends[1] + 1))
        elif mark in marks or (mark.isdecimal() if numbered else len(mark.split()) == 1):
            yield mark


def _cut_label(written: str) -> tuple[str, str]:
    found = _NAMED.fullmatch(written)
    return (found[2], found[1] or "") if found else (written, "")


def _ends_of(written: str, marks: Marks) -> tuple[int, int] | None:
    found = _RANGE.fullmatch(written)
    if not found or not {*found.groups()} <= marks.keys() or int(found[1]) > int(found[2]):
        return None
    return int(found[1]), int(found[2])


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text, each with the citations after its period."""
    joined = _BEHIND_A_PERIOD.sub(r" \2\1 ", text)
    yield from (one for one in _END.split(joined) if _WORD.search(BRACKETS.sub("", one)))
