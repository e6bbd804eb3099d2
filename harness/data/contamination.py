"""Contamination: training rows with the prompt of an evaluated row, or with most words, or the sense, of one.

Invariant: two prompts are the same when `records.fold_text` makes their texts and choices equal. Every other
pair that comes back reaches the threshold of the measure it names, and no row is named twice; these are no
proofs: the thresholds were chosen on pairs of known kind, and reports/data_check.md says how much
contamination they find and how often they are wrong.

A greeting in front of a row or an item, or thanks behind it, are clauses of their own, without which the
rest is compared. At most half of a row or item is left out, so a long row is not contaminated by a short
sentence in it. Source: an item counts as seen where 70 % of its 8-grams are, as for PaLM (Chowdhery et al.
2022, https://arxiv.org/abs/2204.02311, section 8); those that many items or rows share do not count, as
boilerplate in `near_duplicates`.
"""

import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, combinations, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.cache import memo
from harness.data.columns import column_options, columns_of, find_roles
from harness.data.examples import Notes, SourcedExample
from harness.data.near_duplicates import MOST, N, are_alike, fold_words, nearest, similarity
from harness.data.readers import file_of, stream
from harness.data.text_files import Rows, cap_problems
from harness.errors import Problem, UserError, as_argument
from harness.formatting import plain, pluralize
from harness.progress import quiet_libraries
from harness.records import Example, digest, fold_text, split_into_letters
from harness.spec import Task

if TYPE_CHECKING:
    from harness.data.edit.row_files import OutputNames


class ContaminatedRow(NamedTuple):
    """A training row and the evaluated row that asks the same."""

    training: SourcedExample
    evaluated: SourcedExample


def key(example: Example, with_choices: bool = False) -> str:
    """Fold what an example asks: its turns and, where they belong to the question, its choices.

    The key of an item that is only read is its text.
    """
    turns = [m["content"] for m in example.messages if m["role"] != "system"] or list(example.references)
    return "\n".join(map(fold_text, (*turns, *sorted(example.choices) * with_choices)))


def find_contaminated_rows(
    training: Iterable[SourcedExample], evaluated: Iterable[SourcedExample], with_choices: bool = False
) -> list[ContaminatedRow]:
    """List the training rows that an evaluated row repeats, each with the first that does."""
    training = list(training)
    first: dict[str, SourcedExample] = {}
    for row in evaluated if training else ():
        first.setdefault(key(row.example, with_choices), row)
    first.pop("", None)
    keyed = ((row, key(row.example, with_choices)) for row in training)
    return [ContaminatedRow(row, first[question]) for row, question in keyed if question in first]


def drop_contaminated(
    task: Task,
    training: list[SourcedExample],
    evaluated: Iterable[SourcedExample],
    where: str,
    notes: Notes,
    with_choices: bool = False,
) -> list[SourcedExample]:
    """Leave out the training rows that an evaluated row repeats, and say so.

    Raises:
        UserError: there are some, and the task does not say that they are to be dropped.
    """
    found = find_contaminated_rows(training, evaluated, with_choices)
    if found and task.data.contamination == "error":
        step = "remove the row, or set contamination: drop in data: of the task"
        raise UserError(problems(found, where, step))
    if found:
        places = ", ".join(row.training.where.removeprefix(where).lstrip(": ") for row in found[:10])
        more = ", …" if len(found) > 10 else ""
        dropped = f"{pluralize(len(found), 'row')} dropped, evaluated too ({places}{more})"
        notes.removed.append(f"{where}: {dropped}")
    gone = {row.training.where for row in found}
    return [row for row in training if row.where not in gone]


def drop_related(
    training: Iterable[SourcedExample], evaluated: Sequence[SourcedExample], with_choices: bool = False
) -> list[SourcedExample]:
    """Return the training rows that neither ask, nor are of a cluster of, what is evaluated."""
    training = list(training)
    gone = {row.training.where for row in find_contaminated_rows(training, evaluated, with_choices)}
    clusters = {row.example.cluster for row in evaluated if row.example.cluster != row.example.id}
    return [row for row in training if row.where not in gone and row.example.cluster not in clusters]


def suite_contamination(
    train: Sequence[Example | SourcedExample], others: Mapping[str, Sequence[Example]]
) -> list[Problem]:
    """List the training rows that an item of another task repeats; `others` maps tasks to items.

    A row whose place is known is named by it, another one by its id.
    """
    training = [
        row if isinstance(row, SourcedExample) else SourcedExample(row, f"training row {row.id}")
        for row in train
    ]
    items = [SourcedExample(e, f"{task} item {e.id}") for task, found in others.items() for e in found]
    return problems(find_contaminated_rows(training, items), "training", "remove it from the training rows")


def problems(rows: Sequence[ContaminatedRow], where: str, next_step: str) -> list[Problem]:
    """Phrase contaminated rows as problems, at most ten of them shown."""
    expected, found = "no training row that is evaluated", list[Problem]()
    for row in rows:
        prompt = " ".join(row.training.example.prompt.split())
        shown = repr(prompt if len(prompt) <= 60 else f"{prompt[:59]}…")
        said = f"{shown}, the question of {row.evaluated.where} too"
        found.append(Problem(row.training.where, said, expected, next_step))
    return cap_problems(found, where, "training rows that are evaluated")


def phrase_only_evaluated(shown: str, what: str) -> Problem:
    """Phrase training `what`, rows or pairs, of which none is left beside what is evaluated."""
    step = "train on another file, or test on another"
    return Problem(shown, f"only {what} that are evaluated too", f"other training {what}", step)


Measure = Literal["words in common", "8-grams", "words in a part", "embeddings"]

# The lowest at which at most 5 % of the hard negatives of reports/studies/paraphrases.jsonl with an odd
# number raise an alarm; of EMBEDDINGS with all-MiniLM-L6-v2. tests/test_overlap.py chooses them again.
WORDS_IN_COMMON, EMBEDDINGS = 0.78, 0.92
EIGHT_GRAMS = 0.7

# What proposes a row of which a part is compared: this share of the item's runs of four words.
_FEW_WORDS, _PROPOSED = 4, 0.3
# Behind a sentence or a line, at a dash, and behind the comma of up to four words at the beginning.
_CLAUSE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\s+[-–—]+\s+|\n+")
_SALUTATION = re.compile(r"\s*(?:\w+ ){0,3}\w+,\s")

_VERSION = 8  # of this file and of near_duplicates, for what is remembered
_BLOCK = 2_000  # rows
_FIRST = 1_000  # rows by which the columns of a file are recognised

# Texts to vectors of length 1, (n, d).
Encode = Callable[[Sequence[str]], NDArray[np.float32]]


class Overlap(NamedTuple):
    """The places of a training row and of the evaluated item most like it, and how alike, in [0, 1]."""

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
    """Find the training rows that ask what is evaluated, exactly or in other words, the most alike first.

    `training` and `evaluated` are questions; `answers` are those of the training rows, in which an evaluated
    text may stand as well. Of each row the first measure that reaches its threshold is given: words in
    common (the Jaccard index of `near_duplicates.similarity`), 8-grams (the share of the item's that the
    row has), words in a part (words in common with at least half of the row, or of the item, without the
    clauses around it, such as a greeting and thanks), and with `encode` the cosine of embeddings.
    """
    words, items = list(map(_cut, training)), list(map(_cut, evaluated))
    whole = words
    if answers:
        whole = [" ".join(filter(None, of)) for of in zip(words, map(_cut, answers), strict=True)]
    found: dict[int, Overlap] = {}
    for i, near in enumerate(nearest(training, evaluated, threshold=WORDS_IN_COMMON)):
        if near:
            found[i] = Overlap(i, near.row, "words in common", near.similarity)
    for share in largest_shares(whole, items, n=N, least=EIGHT_GRAMS, rare_in_rows=True):
        found.setdefault(share.row, Overlap(share.row, share.item, "8-grams", share.share))
    for row, item, alike, _ in _alike_in_part(training, evaluated, words, items):
        found.setdefault(row, Overlap(row, item, "words in a part", alike))
    shared, copies = set(_runs_of_words(items)), defaultdict[str, list[int]](list)
    for i, text in enumerate(words):
        if not shared.isdisjoint(_runs_of_words([text])):
            copies[text].append(i)
    groups = list(copies.values())
    questions = [training[rows[0]] for rows in groups]
    of_items = list(_alike_in_part(evaluated, questions, items, list(copies)))
    closest = nearest([part for *_, part in of_items], questions, threshold=WORDS_IN_COMMON)
    for (item, place, alike, _), near in zip(of_items, closest, strict=True):
        place, alike = near or (place, alike)  # of rows with the same runs of words the closest
        for row in groups[place]:
            found.setdefault(row, Overlap(row, item, "words in a part", alike))
    if encode:
        for overlap in _close_embeddings(training, evaluated, encode):
            found.setdefault(overlap.training, overlap)
    return sorted(found.values(), key=lambda o: (-o.similarity, o.training))


class Share(NamedTuple):
    """The places of a row and of an item, and the share of the item's n-grams that the row has, in [0, 1]."""

    row: int
    item: int
    share: float


def largest_shares(
    rows: Sequence[str], items: Sequence[str], *, n: int, least: float, rare_in_rows: bool = False
) -> list[Share]:
    """Find for each row the item of whose n-grams it has the largest share, where that is `least` or more.

    Both are folded words, single spaces between them. N-grams of more than `MOST` items do not count; with
    `rare_in_rows` nor do those of more than `MOST` different rows, as few items need not tell boilerplate.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    grams = CountVectorizer(ngram_range=(n, n), token_pattern=r"\S+", lowercase=False, binary=True)
    try:
        of_items = grams.fit_transform(items)  # (items, n-grams)
    except ValueError:  # no item has so many words
        return []
    telling = of_items.sum(axis=0).A1 <= MOST
    if rare_in_rows:
        telling &= grams.transform(dict.fromkeys(rows)).sum(axis=0).A1 <= MOST
    of_items = of_items[:, telling]
    sizes = of_items.sum(axis=1).A1
    found: list[Share] = []
    for start in range(0, len(rows), _BLOCK):
        shared = (grams.transform(rows[start : start + _BLOCK])[:, telling] @ of_items.T).tocsr()
        shared.sort_indices()  # of equal shares the first item
        for row, (first, last) in enumerate(pairwise(shared.indptr), start=start):
            shares = shared.data[first:last] / sizes[shared.indices[first:last]]
            if len(shares) and shares.max() >= least:
                best = int(shares.argmax())
                found.append(Share(row, int(shared.indices[first + best]), float(shares[best])))
    return found


def _runs_of_words(texts: Iterable[str]) -> Iterator[tuple[str, ...]]:
    for words in map(str.split, texts):
        yield from zip(*(words[i:] for i in range(_FEW_WORDS)), strict=False)


def _alike_in_part(
    whole: Sequence[str], texts: Sequence[str], whole_words: Sequence[str], words: Sequence[str]
) -> Iterator[tuple[int, int, float, str]]:
    """Yield the places of a whole and of the text that a part of it is like, how alike, and the part."""
    for share in largest_shares(whole_words, words, n=_FEW_WORDS, least=_PROPOSED):
        text = texts[share.item]
        n_words, row = len(fold_words(text).split()), whole[share.row]
        salutation = _SALUTATION.match(row)
        first = salutation.end() if salutation else 0
        clauses = [clause for clause in (row[:first], *_CLAUSE_END.split(row[first:])) if clause]
        ends = [0, *accumulate(len(fold_words(clause).split()) for clause in clauses)]
        # Runs of clauses with at least half of a row's words, and about as many words as the text has.
        parts = []
        for i, j in combinations(range(len(ends)), 2):
            n = ends[j] - ends[i]
            is_part = ends[-1] / 2 <= n < ends[-1]
            if is_part and WORDS_IN_COMMON * n_words - 1 <= n <= n_words / WORDS_IN_COMMON + 1:
                parts.append(" ".join(clauses[i:j]))
        alike = [(similarity(part, text), part) for part in parts if are_alike(part, text, WORDS_IN_COMMON)]
        if alike:
            yield share.row, share.item, *max(alike)


def _cut(text: str) -> str:
    """Fold the words of a text, of which each letter of a script without blanks is one."""
    return " ".join(split_into_letters(fold_words(text)).split())


def open_encoder(model: str, where: str) -> Encode:
    """Open a sentence-transformers model as a function of texts.

    Raises:
        UserError: the package or the model is not there.
    """
    encoder = load_encoder(model, "SentenceTransformer", where, "leave embeddings out")
    return lambda texts: np.asarray(
        encoder.encode(list(texts), normalize_embeddings=True, show_progress_bar=False), dtype=np.float32
    )


def load_encoder(model: str, kind: str, where: str, otherwise: str) -> Any:
    """Load a model of sentence-transformers, a folder or an id, of the class that `kind` names.

    Raises:
        UserError: the package or the model is not there.
    """
    quiet_libraries()
    try:
        import sentence_transformers
    except ImportError:
        next_step = f"pip install 'harness-evals[dense]', or {otherwise}"
        expected = "the package that embeds texts"
        raise UserError(Problem(where, "no package sentence-transformers", expected, next_step)) from None
    folder = Path(model).expanduser()
    is_absent = model.startswith((".", "/", "~")) and not folder.is_dir()
    try:
        named = str(folder) if folder.is_dir() else model
        return getattr(sentence_transformers, kind)(named, trust_remote_code=False)
    except (OSError, ValueError) as error:
        why = "there is no such folder" if is_absent else str(error).splitlines()[0]
        found = f"model {model} could not be loaded ({why})"
        expected = "a sentence-transformers id that can be fetched or is cached, or a folder"
        raise UserError(Problem(where, found, expected, "check the spelling and the network")) from None


def _close_embeddings(training: Sequence[str], evaluated: Sequence[str], encode: Encode) -> list[Overlap]:
    if not training or not evaluated:
        return []
    rows, items = encode(training), encode(evaluated)
    found = []
    for start in range(0, len(rows), _BLOCK):
        cosines = rows[start : start + _BLOCK] @ items.T  # (rows, items)
        best = cosines.argmax(axis=1)
        for i, j in enumerate(best.tolist()):
            if cosines[i, j] >= EMBEDDINGS:
                found.append(Overlap(start + i, j, "embeddings", min(1.0, float(cosines[i, j]))))
    return found


def repeats_by_sense(
    texts: Sequence[str], encode: Encode, same: Callable[[int, int], bool]
) -> Iterator[tuple[int, int, float]]:
    """Yield the place of each text, of the closest earlier one that may be the `same`, and their cosine."""
    vectors = encode(texts) if texts else np.zeros((0, 1), np.float32)
    for start in range(0, len(vectors), _BLOCK):
        cosines = vectors[start : start + _BLOCK] @ vectors[: start + _BLOCK].T  # (rows, earlier rows)
        for row, near in enumerate(cosines, start=start):
            close = np.flatnonzero(near[:row] >= EMBEDDINGS)
            ordered = close[np.argsort(-near[close], kind="stable")].tolist()
            if (earlier := next((j for j in ordered if same(row, j)), None)) is not None:
                yield row, earlier, min(1.0, float(near[earlier]))


class ReadBy(NamedTuple):
    """Columns, or templates over columns, by which rows are read, and the column of their group."""

    prompt: str | None = None
    reference: str | None = None
    group: str | None = None


_RECOGNISED = ReadBy()


def overlap_notes(
    training: Sequence[SourcedExample],
    evaluated: Sequence[SourcedExample],
    where: str,
    with_choices: bool = False,
    encode: Encode | None = None,
    drawn_from: str = "",
    read_by: ReadBy = _RECOGNISED,
    names: "OutputNames | None" = None,
) -> list[str]:
    """Say which training rows of a file ask in other words what is evaluated, the closest three by place.

    With `encode` a second note names those that only the embeddings find. `drawn_from` is the file of
    training rows from which evaluated ones were set aside, by default the file itself. `names` are those of
    what earlier notes' commands write, which get names of their own.
    """
    questions, items = ([key(row.example, with_choices) for row in rows] for rows in (training, evaluated))
    answers = ["\n".join(row.example.references) for row in training]
    if not questions or not items:
        return []
    name = digest([_VERSION, WORDS_IN_COMMON, EIGHT_GRAMS, questions, answers, items])
    remembered = memo("overlap", name, lambda: overlaps(questions, items, answers=answers))
    found = [Overlap(*one) for one in remembered]
    known = {one.training for one in found}
    close = _close_embeddings(questions, items, encode) if encode else []
    by_sense = sorted((o for o in close if o.training not in known), key=lambda o: -o.similarity)
    names = {} if names is None else names
    n_rows = Counter(file_of(row.where) for row in (*training, *evaluated))
    notes = []
    for of in filter(None, (found, by_sense)):
        pairs = [(training[o.training].where, evaluated[o.evaluated].where) for o in of]
        near = zip(pairs[:3], of, strict=False)
        closest = "; ".join(f"{a} and {b} ({o.measure} {plain(o.similarity)})" for (a, b), o in near)
        said = f"{pluralize(len(of), 'row')} may be evaluated items in other words; closest: {closest}"
        # Dedup looks at words alone.
        commands = _commands(pairs, n_rows, drawn_from or where, read_by, names) if of is found else ()
        notes.append(f"{where}: {said}{''.join(commands)}")
    return notes


def _commands(
    pairs: Sequence[tuple[str, str]],
    n_rows: Mapping[str, int],
    drawn_from: str,
    read_by: ReadBy,
    names: "OutputNames",
) -> Iterator[str]:
    """Name the commands that take such rows of files out of training; items of lm-eval have no file.

    `n_rows` counts the rows of each file, trained on or evaluated: of a file that none would be left of, that
    is said.
    """
    from harness.data.edit.row_files import name_output

    against: dict[str, dict[str, None]] = {}
    for training, evaluated in pairs:
        against.setdefault(file_of(training), {})[file_of(evaluated)] = None
    # The evaluated items may be of a training file itself.
    is_drawn = any(drawn_from in of for of in against.values())
    if is_drawn and (split := _split_command(drawn_from, read_by, names)):
        yield f"; `{split}` keeps rows that are alike in one part"
    for file, of in against.items():
        tests = [f for f in of if f not in ("", file, drawn_from) and _options(f, read_by) is not None]
        if not tests or (named := _options(file, read_by)) is None:
            continue
        n_dropped = sum(file_of(row) == file and file_of(item) in tests for row, item in pairs)
        if n_dropped == n_rows[file]:
            split = _split_command(file, read_by, names)
            yield f"; these are all rows of {file}: test on another file, or on a part of `{split}`"
            continue
        held = "".join(f" --against {as_argument(test)}" for test in tests)
        out = as_argument(name_output(names, file, "dedup"))
        yield f"; `harness data dedup {as_argument(file)}{named}{held} --out {out}` leaves them out"


def _split_command(file: str, read_by: ReadBy, names: "OutputNames") -> str:
    from harness.data.edit.row_files import name_output

    if (named := _options(file, read_by)) is None:
        return ""
    group = f" --group {shlex.quote(read_by.group)}" if read_by.group else ""
    out = as_argument(name_output(names, file, "split"))
    return f"harness data split {as_argument(file)}{named}{group} --out {out}"


def _options(file: str, read_by: ReadBy) -> str | None:
    """Return the options by which `harness data` reads a file's rows; None where it cannot read them."""
    prompt, reference = read_by.prompt, read_by.reference
    if Path(file).is_file():
        content = Rows(file, "", list(islice(stream(file, "train"), _FIRST)))
        names = content.names
        prompt, reference = (
            named if named and set(columns_of(named, names)) <= names else None
            for named in (prompt, reference)
        )
        try:
            find_roles(content, prompt, reference)
        except UserError:
            return None
    return "".join(f" {shlex.quote(word)}" for word in column_options(prompt, reference))
