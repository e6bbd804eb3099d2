"""Contamination: training rows with the prompt of an evaluated row, or with similar words or meaning.

Invariant: two prompts are the same if `records.fold_text` makes their texts and choices equal. Every other
pair reaches the threshold of the measure that it names (chosen as reports/data_check.md describes).
Source: an item counts as seen if 70 % of its 8-grams are, as for PaLM (Chowdhery et al. 2022,
https://arxiv.org/abs/2204.02311, section 8).
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, combinations, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.cache import memo
from harness.data.examples import Notes, SourcedExample, SourcedRows
from harness.data.near_duplicates import MOST, N, are_alike, fold_words, nearest, similarity
from harness.data.readers import file_of
from harness.data.text_files import cap_problems
from harness.errors import Problem, UserError, as_argument
from harness.formatting import plain, pluralize
from harness.progress import quiet_libraries
from harness.records import Example, digest, fold_text, split_into_letters
from harness.spec import Task


class ContaminatedRow(NamedTuple):
    """A training row and the evaluated row with the same question."""

    training: SourcedExample
    evaluated: SourcedExample


def key(example: Example, with_choices: bool = False) -> str:
    """Fold the question of an example: its turns or its text, and with `with_choices` its choices."""
    turns = [m["content"] for m in example.messages if m["role"] != "system"] or list(example.references)
    return "\n".join(map(fold_text, (*turns, *sorted(example.choices) * with_choices)))


def find_contaminated_rows(
    training: Iterable[SourcedExample], evaluated: Iterable[SourcedExample], with_choices: bool = False
) -> list[ContaminatedRow]:
    """List the training rows that an evaluated row repeats, each with the first such row."""
    training = list(training)
    by_key: dict[str, SourcedExample] = {}
    for row in evaluated if training else ():
        by_key.setdefault(key(row.example, with_choices), row)
    by_key.pop("", None)
    keyed_rows = ((row, key(row.example, with_choices)) for row in training)
    return [ContaminatedRow(row, by_key[question]) for row, question in keyed_rows if question in by_key]


def drop_contaminated(
    task: Task,
    training: list[SourcedExample],
    evaluated: Iterable[SourcedExample],
    where: str,
    notes: Notes,
    with_choices: bool = False,
) -> list[SourcedExample]:
    """Leave out the training rows that an evaluated row repeats, or refuse them, as the task says."""
    contaminated = find_contaminated_rows(training, evaluated, with_choices)
    if contaminated and task.data.contamination == "error":
        step = "remove the row, or set contamination: drop in data: of the task"
        raise UserError(problems(contaminated, where, step))
    if contaminated:
        places = ", ".join(row.training.where.removeprefix(where).lstrip(": ") for row in contaminated[:10])
        ellipsis = ", …" if len(contaminated) > 10 else ""
        summary = f"{pluralize(len(contaminated), 'row')} dropped, evaluated too ({places}{ellipsis})"
        notes.removed.append(f"{where}: {summary}")
    dropped_places = {row.training.where for row in contaminated}
    return [row for row in training if row.where not in dropped_places]


def drop_related(
    training: Iterable[SourcedExample], evaluated: SourcedRows, with_choices: bool = False
) -> list[SourcedExample]:
    """Return the training rows without an evaluated question or cluster."""
    training = list(training)
    repeats = {row.training.where for row in find_contaminated_rows(training, evaluated, with_choices)}
    clusters = {row.example.cluster for row in evaluated if row.example.cluster != row.example.id}
    return [row for row in training if row.where not in repeats and row.example.cluster not in clusters]


def suite_contamination(
    train: Sequence[Example | SourcedExample], others: Mapping[str, Sequence[Example]]
) -> list[Problem]:
    """List the training rows that an item of another task repeats; `others` maps tasks to items."""
    training = [
        row if isinstance(row, SourcedExample) else SourcedExample(row, f"training row {row.id}")
        for row in train
    ]
    items = [SourcedExample(e, f"{task} item {e.id}") for task, examples in others.items() for e in examples]
    return problems(find_contaminated_rows(training, items), "training", "remove it from the training rows")


def problems(rows: Sequence[ContaminatedRow], where: str, next_step: str) -> list[Problem]:
    """Describe contaminated rows as problems, at most ten."""
    expected, row_problems = "no training row that is evaluated", list[Problem]()
    for training, evaluated in rows:
        prompt = " ".join(training.example.prompt.split())
        shown_prompt = repr(prompt if len(prompt) <= 60 else f"{prompt[:59]}…")
        description = f"{shown_prompt}, the question of {evaluated.where} too"
        row_problems.append(Problem(training.where, description, expected, next_step))
    return cap_problems(row_problems, where, "training rows that are evaluated")


def phrase_only_evaluated(shown_path: str, kind: str) -> Problem:
    """Return the problem of training rows or pairs (`kind`) that are all evaluated too."""
    step = "train on another file, or test on another"
    return Problem(shown_path, f"only {kind} that are evaluated too", f"other training {kind}", step)


Measure = Literal["words in common", "8-grams", "words in a part", "embeddings"]

# The lowest thresholds that raise alarms for at most 5 % of the odd hard negatives of
# reports/studies/paraphrases.jsonl; embeddings of all-MiniLM-L6-v2. tests/data/test_overlap.py repeats it.
WORDS_IN_COMMON, EMBEDDINGS = 0.78, 0.92
EIGHT_GRAMS = 0.7

# A part of a row is compared if the row has this share of the item's runs of four words.
_FEW_WORDS, _PROPOSED = 4, 0.3
# After a sentence or a line, at a dash, and after the comma of up to four words at the beginning.
_CLAUSE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\s+[-–—]+\s+|\n+")
_SALUTATION = re.compile(r"\s*(?:\w+ ){0,3}\w+,\s")

_VERSION = 10  # of this file and of near_duplicates, for remembered overlaps
_BLOCK = 2_000  # rows

# Texts to vectors of length 1, (n, d).
Encode = Callable[[Sequence[str]], NDArray[np.float32]]


class Overlap(NamedTuple):
    """The indices of a training row and of the most similar evaluated item, and the similarity in [0, 1]."""

    training: int
    evaluated: int
    measure: Measure
    similarity: float


def overlaps(
    training: Sequence[str],
    evaluated: Sequence[str],
    *,
    answers: Sequence[str] | None = None,
    encode: Encode | None = None,
) -> list[Overlap]:
    """Find the training rows that repeat or paraphrase evaluated questions, the most similar first.

    `training` and `evaluated` are questions; `answers` are those of the training rows. Each row gets the
    first measure that reaches its threshold: words in common (Jaccard index of shingles), 8-grams (the share
    of the item's 8-grams in the row), words in a part of the row or item, and with `encode` the cosine.
    """
    words, items = list(map(_cut, training)), list(map(_cut, evaluated))
    row_texts = words
    if answers:
        row_texts = [" ".join(filter(None, pair)) for pair in zip(words, map(_cut, answers), strict=True)]
    overlap_by_row: dict[int, Overlap] = {}
    for i, match in enumerate(nearest(training, evaluated, threshold=WORDS_IN_COMMON)):
        if match:
            overlap_by_row[i] = Overlap(i, match.row, "words in common", match.similarity)
    for row, item, share in largest_shares(row_texts, items, n=N, min_share=EIGHT_GRAMS, rare_in_rows=True):
        overlap_by_row.setdefault(row, Overlap(row, item, "8-grams", share))
    for row, item, jaccard, _ in _alike_in_part(training, evaluated, words, items):
        overlap_by_row.setdefault(row, Overlap(row, item, "words in a part", jaccard))
    item_runs, rows_by_text = set(_runs_of_words(items)), defaultdict[str, list[int]](list)
    for i, text in enumerate(words):
        if not item_runs.isdisjoint(_runs_of_words([text])):
            rows_by_text[text].append(i)
    groups = list(rows_by_text.values())
    questions = [training[rows[0]] for rows in groups]
    item_matches = list(_alike_in_part(evaluated, questions, items, list(rows_by_text)))
    closest_questions = nearest([part for *_, part in item_matches], questions, threshold=WORDS_IN_COMMON)
    for (item, group, jaccard, _), match in zip(item_matches, closest_questions, strict=True):
        group, jaccard = match or (group, jaccard)  # the closest of the rows with the same runs of words
        for row in groups[group]:
            overlap_by_row.setdefault(row, Overlap(row, item, "words in a part", jaccard))
    if encode:
        for overlap in _close_embeddings(training, evaluated, encode):
            overlap_by_row.setdefault(overlap.training, overlap)
    return sorted(overlap_by_row.values(), key=lambda o: (-o.similarity, o.training))


def largest_shares(
    rows: Sequence[str], items: Sequence[str], *, n: int, min_share: float, rare_in_rows: bool = False
) -> list[tuple[int, int, float]]:
    """List each row with the item whose n-grams it shares most, if the share is at least `min_share`.

    Both are folded words with single spaces. N-grams of more than `MOST` items do not count; with
    `rare_in_rows` neither do those of more than `MOST` different rows.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    grams = CountVectorizer(ngram_range=(n, n), token_pattern=r"\S+", lowercase=False, binary=True)
    try:
        item_grams = grams.fit_transform(items)  # (items, n-grams)
    except ValueError:  # no item has n words
        return []
    is_counted = item_grams.sum(axis=0).A1 <= MOST
    if rare_in_rows:
        is_counted &= grams.transform(dict.fromkeys(rows)).sum(axis=0).A1 <= MOST
    item_grams = item_grams[:, is_counted]
    sizes = item_grams.sum(axis=1).A1
    row_shares: list[tuple[int, int, float]] = []
    for start in range(0, len(rows), _BLOCK):
        n_shared = (grams.transform(rows[start : start + _BLOCK])[:, is_counted] @ item_grams.T).tocsr()
        n_shared.sort_indices()  # the first item of equal shares
        for row, (first, last) in enumerate(pairwise(n_shared.indptr), start=start):
            shares = n_shared.data[first:last] / sizes[n_shared.indices[first:last]]
            if len(shares) and shares.max() >= min_share:
                best_index = int(shares.argmax())
                row_shares.append((row, int(n_shared.indices[first + best_index]), float(shares[best_index])))
    return row_shares


def _runs_of_words(texts: Iterable[str]) -> Iterator[tuple[str, ...]]:
    for words in map(str.split, texts):
        yield from zip(*(words[i:] for i in range(_FEW_WORDS)), strict=False)


def _alike_in_part(
    whole: Sequence[str], texts: Sequence[str], whole_words: Sequence[str], words: Sequence[str]
) -> Iterator[tuple[int, int, float, str]]:
    """Yield the indices of a whole and of the text similar to a part of it, the similarity, and the part."""
    for index, item, _ in largest_shares(whole_words, words, n=_FEW_WORDS, min_share=_PROPOSED):
        text, passage = texts[item], whole[index]
        n_words = len(fold_words(text).split())
        salutation = _SALUTATION.match(passage)
        start = salutation.end() if salutation else 0
        clauses = [clause for clause in (passage[:start], *_CLAUSE_END.split(passage[start:])) if clause]
        ends = [0, *accumulate(len(fold_words(clause).split()) for clause in clauses)]
        # Runs of clauses with at least half of the row's words, and about as many words as the text.
        parts = []
        for i, j in combinations(range(len(ends)), 2):
            n = ends[j] - ends[i]
            is_part = ends[-1] / 2 <= n < ends[-1]
            if is_part and WORDS_IN_COMMON * n_words - 1 <= n <= n_words / WORDS_IN_COMMON + 1:
                parts.append(" ".join(clauses[i:j]))
        matches = [(similarity(part, text), part) for part in parts if are_alike(part, text, WORDS_IN_COMMON)]
        if matches:
            yield index, item, *max(matches)


def _cut(text: str) -> str:
    """Fold the words of a text; each letter of a script without blanks is a word."""
    return " ".join(split_into_letters(fold_words(text)).split())


def open_encoder(model: str, where: str) -> Encode:
    """Open a sentence-transformers model as a function of texts; a missing one is a UserError."""
    encoder = load_encoder(model, "SentenceTransformer", where, "leave embeddings out")
    return lambda texts: np.asarray(
        encoder.encode(list(texts), normalize_embeddings=True, show_progress_bar=False), dtype=np.float32
    )


def load_encoder(model: str, kind: str, where: str, alternative: str) -> Any:
    """Load a sentence-transformers model, a folder or an id, of the class `kind`; UserError if missing."""
    quiet_libraries()
    try:
        import sentence_transformers
    except ImportError:
        found, expected = "no package sentence-transformers", "the package that embeds texts"
        step = f"pip install 'harness-evals[dense]', or {alternative}"
        raise UserError(where, found, expected, step) from None
    folder = Path(model).expanduser()
    try:
        model_path = str(folder) if folder.is_dir() else model
        return getattr(sentence_transformers, kind)(model_path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        found = f"model {model} could not be loaded ({str(error).splitlines()[0]})"
        expected = "a sentence-transformers id that can be fetched or is cached, or a folder"
        raise UserError(where, found, expected, "check the spelling and the network") from None


def _close_embeddings(training: Sequence[str], evaluated: Sequence[str], encode: Encode) -> list[Overlap]:
    if not training or not evaluated:
        return []
    rows, items = encode(training), encode(evaluated)
    close_overlaps = []
    for start in range(0, len(rows), _BLOCK):
        cosines = rows[start : start + _BLOCK] @ items.T  # (rows, items)
        for i, j in enumerate(cosines.argmax(axis=1).tolist()):
            if cosines[i, j] >= EMBEDDINGS:
                close_overlaps.append(Overlap(start + i, j, "embeddings", min(1.0, float(cosines[i, j]))))
    return close_overlaps


def repeats_by_sense(
    texts: Sequence[str], encode: Encode, same: Callable[[int, int], bool]
) -> Iterator[tuple[int, int, float]]:
    """Yield the indices of each text and the closest earlier one that may be the `same`, and their cosine."""
    vectors = encode(texts) if texts else np.zeros((0, 1), np.float32)
    for start in range(0, len(vectors), _BLOCK):
        cosines = vectors[start : start + _BLOCK] @ vectors[: start + _BLOCK].T  # (rows, earlier rows)
        for row, row_cosines in enumerate(cosines, start=start):
            close_rows = np.flatnonzero(row_cosines[:row] >= EMBEDDINGS)
            closest_first = close_rows[np.argsort(-row_cosines[close_rows], kind="stable")].tolist()
            if (earlier := next((j for j in closest_first if same(row, j)), None)) is not None:
                yield row, earlier, min(1.0, float(row_cosines[earlier]))


def overlap_notes(
    training: SourcedRows,
    evaluated: SourcedRows,
    where: str,
    with_choices: bool = False,
    encode: Encode | None = None,
    options: str = "",
    drawn_from: str = "",
) -> list[str]:
    """Describe the training rows of a file that paraphrase evaluated questions, with the closest three.

    With `encode` a second note has the rows that only embeddings find. `options` name the columns in the
    command that drops such rows; `drawn_from` is the file that evaluated rows were set aside from.
    """
    from harness.data.edit.row_files import new_name

    questions, items = ([key(row.example, with_choices) for row in rows] for rows in (training, evaluated))
    answers = ["\n".join(row.example.references) for row in training]
    if not questions or not items:
        return []
    name = digest([_VERSION, WORDS_IN_COMMON, EIGHT_GRAMS, questions, answers, items])
    stored_overlaps = memo("overlap", name, lambda: overlaps(questions, items, answers=answers))
    word_overlaps = [Overlap(*values) for values in stored_overlaps]
    known_rows = {overlap.training for overlap in word_overlaps}
    close_overlaps = _close_embeddings(questions, items, encode) if encode else []
    sense_overlaps = [o for o in close_overlaps if o.training not in known_rows]
    sense_overlaps.sort(key=lambda o: -o.similarity)
    notes = []
    for group in filter(None, (word_overlaps, sense_overlaps)):
        pairs = [(training[o.training].where, evaluated[o.evaluated].where) for o in group]
        nearest_three = zip(pairs[:3], group, strict=False)
        closest = "; ".join(f"{a} and {b} ({o.measure} {plain(o.similarity)})" for (a, b), o in nearest_three)
        note = f"{pluralize(len(pairs), 'row')} may be evaluated items in other words; closest: {closest}"
        tests_by_file: dict[str, dict[str, None]] = defaultdict(dict)
        for file, test in [map(file_of, pair) for pair in pairs] if group is word_overlaps else ():
            if file and test not in ("", file, drawn_from):  # items of lm-eval have no file
                tests_by_file[file][test] = None
        for file, tests in tests_by_file.items():
            against = "".join(f" --against {as_argument(test)}" for test in tests)
            out_file = as_argument(new_name(file, "dedup"))
            command = f"harness data dedup {as_argument(file)}{options}{against} --out {out_file}"
            note += f"; `{command}` leaves them out"
        notes.append(f"{where}: {note}")
    return notes
