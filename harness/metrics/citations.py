"""Citations in an answer of the passages of its prompt, and what these passages entail (docs/howto/data.md).

Invariant: a citation counts for what the prompt shows under its mark and for nothing else; text in brackets
that does not look like a mark of the prompt is not a citation. A sentence is supported if the probability of
entailment by one of the passages is at least ½; an answer without passages has no support.
Source: Gao et al. 2023 (ALCE), arXiv:2305.14627, section 4.3; here the item names the documents that support
an answer, where ALCE asks an entailment model. Sentence against each passage, the best of them, by Laban et
al. 2022 (SummaC), arXiv:2111.09525.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.metrics import Metric, mean_metric
from harness.progress import quiet_libraries
from harness.records import Example, Output, context_of, map_passage_marks, pieces, question
from harness.spec import Task, is_path, metric_name, metric_parts

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


def _find_cited(text: str, marks: Marks) -> Iterator[str]:
    for inside in BRACKETS.findall(_bracket_citations(text, marks)):
        yield from _marks_of(inside, marks)


def _bracket_citations(text: str, marks: Marks) -> str:

    def read_superscript(match: re.Match[str]) -> str:
        number = match[1].translate(_RAISED)
        if _UNIT.search(match.string, max(0, match.start() - 12), match.start()):
            return match[0]
        if number in marks:
            return f"[{number}]"
        return "".join(f"[{d}]" for d in number) if all(d in marks for d in number) else match[0]

    def read_behind_label(match: re.Match[str]) -> str:
        if BRACKETS.search(match[1]):
            return match[1]
        return f"[{match[1]}]" if [*_marks_of(match[1], marks)] else match[0]

    def read_parentheses(match: re.Match[str]) -> str:  # numbers that are not marks are text
        # Without a label they count only at the end of a clause, because `(1)` before a word numbers a list.
        pairs = [_cut_label(part.strip()) for part in _SEPARATOR.split(match[2])]
        labelled = any(label for _, label in pairs)
        is_cited = all((mark.isdecimal() and mark in marks) or _ends_of(mark, marks) for mark, _ in pairs)
        if is_cited and (labelled or match[3] is not None):
            return f"{match[1]}[{', '.join(mark for mark, _ in pairs)}]"
        return match[0]

    def keep_marks(match: re.Match[str]) -> str:  # drop other words, which may contain the end of a sentence
        cited_marks = [*_marks_of(match[1], marks)]
        return f"[{', '.join(cited_marks)}]" if cited_marks else match[0]

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
    match = _NAMED.fullmatch(written)
    return (match[2], match[1] or "") if match else (written, "")


def _ends_of(written: str, marks: Marks) -> tuple[int, int] | None:
    match = _RANGE.fullmatch(written)
    if not match or not {*match.groups()} <= marks.keys() or int(match[1]) > int(match[2]):
        return None
    return int(match[1]), int(match[2])


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text, each with the citations after its period."""
    joined = _BEHIND_A_PERIOD.sub(r" \2\1 ", text)
    yield from (sentence for sentence in _END.split(joined) if _WORD.search(BRACKETS.sub("", sentence)))


class CitationPrecision:
    """Share of an answer's citations that name a passage of its prompt which holds the answer.

    Each passage counts once, however often it is cited; an answer that cites nothing scores 0.
    """

    @staticmethod
    def _score(output: Output, example: Example) -> float:
        """Return the share of citations that name a needed passage of the prompt; 0 without citations."""
        # If the item names no documents, every passage of the prompt counts as needed.
        marks = map_passage_marks(example)
        cited = set(_find_cited(output.text, marks))
        needed = example.documents
        n_right = sum(mark in marks and (not needed or marks[mark] in needed) for mark in cited)
        return n_right / len(cited) if cited else 0.0

    metric = mean_metric("citation_precision", _score)


class CitationRecall:
    """Share of the documents with the answer that an answer cites from its prompt.

    A document that was not retrieved cannot be cited, so it counts against the candidate's retrieval.
    """

    @staticmethod
    def _score(output: Output, example: Example) -> float:
        """Return the share of needed documents that are cited from the prompt."""
        # If the item names none, it is the share of sentences that cite a passage of the prompt.
        marks = map_passage_marks(example)
        if needed := set(example.documents):
            return len({marks.get(mark) for mark in _find_cited(output.text, marks)} & needed) / len(needed)
        answer_sentences = list(sentences(_bracket_citations(output.text, marks)))
        supported = [any(mark in marks for mark in _find_cited(s, marks)) for s in answer_sentences]
        return sum(supported) / len(supported) if supported else 0.0

    metric = mean_metric("citation_recall", _score)


PLUGINS = {"citation_precision": CitationPrecision, "citation_recall": CitationRecall}

Entails = Callable[[Sequence[tuple[str, str]]], list[float]]

_EVEN = 0.5
_SHORT = 5  # words; shorter sentences say nothing without the question
_PACKAGE = "sentence_transformers"


def build_entailment(task: Task, written: str) -> Metric:
    """Build the share of supported sentences in [0, 1]; the model is loaded at the first answer."""
    model, name = metric_parts(written)[1], metric_name(written)
    where = f"task {task.name}: metric {name}"
    if find_spec(_PACKAGE) is None:
        found = "no package sentence-transformers"
        step = "pip install 'harness-evals[dense]', or remove the metric"
        raise UserError(where, found, "the package that loads the model", step)
    if is_path(model):
        try:
            config = json.loads((Path(model) / "config.json").read_text("utf-8"))
        except (OSError, ValueError):
            expected = "the folder of a sequence classifier"
            step = "correct the path, or name a model of the hub"
            raise UserError(where, f"no config.json in {model}", expected, step) from None
        _place(config.get("id2label") or {}, where)

    def score(output: Output, example: Example) -> float:
        return support(output.text, example, lambda pairs: _entailment(model, where)(pairs))

    return mean_metric(name, score)


def support(answer: str, example: Example, entails: Entails) -> float:
    """Return the share of an answer's sentences that one of its passages entails."""
    prompt = example.prompt if example.passages else example.plain_prompt or example.prompt
    context = context_of(prompt, example.plain_prompt if example.passages else "")
    passages = [BRACKETS.sub("", line).strip() for line in context.splitlines()]
    question_text = (example.plain_prompt or question(example)).strip()
    statements = [BRACKETS.sub("", s).strip() for s in sentences(answer)]
    statements = [f"{question_text} {s}" if len(pieces(s)) < _SHORT else s for s in statements]
    if not passages or not statements:
        return 0.0
    probabilities = iter(entails([(passage, s) for s in statements for passage in passages]))
    best_by_statement = [max(next(probabilities) for _ in passages) for _ in statements]
    return sum(p >= _EVEN for p in best_by_statement) / len(best_by_statement)


@lru_cache(maxsize=1)
def _entailment(model: str, where: str) -> Entails:
    """Load a model; return a function from (premise, hypothesis) pairs to probabilities of entailment."""
    quiet_libraries()
    import sentence_transformers

    onnx = Path(model).is_dir() and not list(Path(model).glob("*.safetensors"))
    backend: Any = "onnx" if onnx and list(Path(model).rglob("*.onnx")) else "torch"
    try:
        encoder = sentence_transformers.CrossEncoder(model, backend=backend, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        found = f"model {model} could not be loaded ({str(error).splitlines()[0]})"
        expected = "an id that can be fetched or is cached, or a folder, of a sequence classifier"
        raise UserError(where, found, expected, "check the spelling and the network") from None
    label_index = _place(encoder.config.id2label, where)

    def entails(pairs: Sequence[tuple[str, str]]) -> list[float]:
        chances = encoder.predict(list(pairs), apply_softmax=True, show_progress_bar=False)  # (n, labels)
        return [float(p) for p in chances[:, label_index]]

    return entails


def _place(labels: dict[Any, str], where: str) -> int:
    candidates = [int(i) for i, label in labels.items() if "entail" in label.casefold()]
    exact = [int(i) for i, label in labels.items() if label.casefold() in ("entailment", "entailed")]
    if len(exact or candidates) != 1:
        found = f"a model with the labels {', '.join(labels.values()) or 'of nothing'}"
        step = "correct id2label in its config.json, or take a model of natural language inference"
        raise UserError(where, found, "one that is called entailment", step)
    return (exact or candidates)[0]
