"""Citations in an answer, as `[1]`, `[2, 3]` or `[id]`, and the passages of its prompt that they name.

Invariant: a citation counts for what the prompt shows under its mark and for nothing else; what stands in
brackets and looks like no mark of the prompt is none. A link of Markdown is none either.
Source: precision and recall of citations after Gao et al. 2023 (ALCE), arXiv:2305.14627, section 4.3; what a
passage supports is said by the item here, which names its documents, where ALCE asks an entailment model.
"""

import re
from collections.abc import Iterator, Mapping

from harness.prompting import marked_passages
from harness.records import Example

BRACKETS = re.compile(r"\[([^\[\]]+)\](?!\()")
_BEHIND_A_PERIOD = re.compile(r"([.!?])\s*((?:\[[^\[\]]+\]\s*)+)")
_END = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"\w")


def precision(answer: str, example: Example) -> float:
    """Return the share of citations of a passage in the prompt that is needed; 0 where nothing is cited.

    Where the item names no documents, every passage of the prompt counts as needed.
    """
    marks = marked_passages(example)
    cited = set(_cited(answer, marks))
    return sum(_is_needed(mark, marks, example) for mark in cited) / len(cited) if cited else 0.0


def recall(answer: str, example: Example) -> float:
    """Return the share of needed documents that are cited from the prompt.

    Where the item names none, it is the share of sentences that cite a passage of the prompt.
    """
    marks = marked_passages(example)
    if needed := set(example.documents):
        return len({marks.get(mark) for mark in _cited(answer, marks)} & needed) / len(needed)
    found = list(sentences(answer))
    supported = [any(mark in marks for mark in _cited(one, marks)) for one in found]
    return sum(supported) / len(supported) if supported else 0.0


def _is_needed(mark: str, marks: Mapping[str, str], example: Example) -> bool:
    return mark in marks and (not example.documents or marks[mark] in example.documents)


def _cited(text: str, marks: Mapping[str, str]) -> Iterator[str]:
    """Yield the marks that a text cites, also those that the prompt does not have."""
    numbered = all(mark.isdecimal() for mark in marks)
    for inside in BRACKETS.findall(text):
        whole = inside.strip()
        for mark in [whole] if whole in marks else map(str.strip, re.split("[,;]", whole)):
            if mark in marks or (mark.isdecimal() if numbered else len(mark.split()) == 1):
                yield mark


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text, each with the citations that stand behind its period."""
    joined = _BEHIND_A_PERIOD.sub(r" \2\1 ", text)
    yield from (one for one in _END.split(joined) if _WORD.search(BRACKETS.sub("", one)))
