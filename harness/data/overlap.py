"""Leaks in other words: training rows that share most of their words, or their sense, with an evaluated item.

Invariant: every pair that comes back reaches the threshold of the measure it names, and no row is named
twice. Nothing here is a proof: the thresholds were chosen on pairs of known kind, and reports/data_check.md
says how many leaks they find and how often they are wrong.

Source: an item counts as seen where 70 % of its 8-grams are, as for PaLM (Chowdhery et al. 2022,
https://arxiv.org/abs/2204.02311, section 8); those that many items or rows share do not count, as in
`boilerplate`.
"""

import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.cache import memo
from harness.data.boilerplate import MOST, eight_grams
from harness.data.contamination import key
from harness.data.examples import Sourced
from harness.data.near_duplicates import fold_words, nearest
from harness.errors import Problem, UserError
from harness.formatting import plain, pluralize
from harness.progress import quiet_libraries
from harness.records import digest

Measure = Literal["words in common", "8-grams", "embeddings"]

# The lowest at which at most 5 % of the hard negatives of tests/studies/paraphrases.jsonl with an odd number
# raise an alarm; of EMBEDDINGS with all-MiniLM-L6-v2. tests/test_overlap.py chooses them anew.
WORDS_IN_COMMON, EMBEDDINGS = 0.78, 0.92
EIGHT_GRAMS = 0.7

_VERSION = 3  # of this file and of near_duplicates, for what is remembered
_BLOCK = 2_000  # rows

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
    row has), and with `encode` the cosine of embeddings.
    """
    whole = [f"{asked}\n{answer}" for asked, answer in zip(training, answers or training, strict=True)]
    found: dict[int, Overlap] = {}
    for i, near in enumerate(nearest(training, evaluated, threshold=WORDS_IN_COMMON)):
        if near:
            found[i] = Overlap(i, near.row, "words in common", near.similarity)
    for overlap in _shared_eight_grams(whole if answers else training, evaluated):
        found.setdefault(overlap.training, overlap)
    if encode:
        for overlap in _close_embeddings(training, evaluated, encode):
            found.setdefault(overlap.training, overlap)
    return sorted(found.values(), key=lambda o: (-o.similarity, o.training))


def open_encoder(model: str, where: str) -> Encode:
    """Open a sentence-transformers model as a function of texts.

    Raises:
        UserError: the package or the model is not there.
    """
    quiet_libraries()
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        next_step = "pip install 'harness-evals[dense]', or leave embeddings out"
        expected = "the package that embeds texts"
        raise UserError(Problem(where, "no package sentence-transformers", expected, next_step)) from None
    try:
        encoder: Any = SentenceTransformer(model)
    except (OSError, ValueError) as error:
        found = f"model {model} could not be loaded ({str(error).splitlines()[0]})"
        expected = "a sentence-transformers id that can be fetched or is cached, or a folder"
        raise UserError(Problem(where, found, expected, "check the spelling and the network")) from None
    return lambda texts: np.asarray(
        encoder.encode(list(texts), normalize_embeddings=True, show_progress_bar=False), dtype=np.float32
    )


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


def _shared_eight_grams(training: Sequence[str], evaluated: Sequence[str]) -> list[Overlap]:
    """Find for each row the item of whose 8-grams it has the largest share, where that is enough.

    What more than `MOST` items or rows of other texts share is boilerplate, so few items need not tell it.
    """
    grams, owners = _joined([_eight_grams(text) for text in evaluated])
    known, place, count = np.unique(grams, return_inverse=True, return_counts=True)
    telling = (count <= MOST)[place] & (_counts(training, known) <= MOST)[place]
    order = np.argsort(grams[telling], kind="stable")
    grams, owners = grams[telling][order], owners[telling][order]
    of_item = np.bincount(owners, minlength=len(evaluated))
    found: list[Overlap] = []
    for start in range(0, len(training), _BLOCK):
        block = [_eight_grams(text) for text in training[start : start + _BLOCK]]
        found += _contained(*_joined(block), grams, owners, of_item, start)
    return found


def _counts(texts: Sequence[str], known: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Count for each of the sorted 8-grams in how many different texts it stands."""
    counts = np.zeros(len(known), dtype=np.int64)
    different = list(dict.fromkeys(map(fold_words, texts))) if len(known) else []
    for start in range(0, len(different), _BLOCK):
        grams, _ = _joined([np.unique(eight_grams(words)) for words in different[start : start + _BLOCK]])
        at = np.minimum(np.searchsorted(known, grams), len(known) - 1)
        counts += np.bincount(at[known[at] == grams], minlength=len(known))
    return counts


def _contained(
    asked: NDArray[np.uint64],
    rows: NDArray[np.int64],
    grams: NDArray[np.uint64],
    owners: NDArray[np.int64],
    of_item: NDArray[np.int64],
    start: int,
) -> list[Overlap]:
    """Give for each row of a block the item with the largest share of its 8-grams in the row."""
    order = np.argsort(asked)
    asked, rows = asked[order], rows[order]
    first, last = np.searchsorted(grams, asked, "left"), np.searchsorted(grams, asked, "right")
    n_hits = last - first
    hit_rows = np.repeat(rows, n_hits)
    within = np.arange(len(hit_rows)) - np.repeat(n_hits.cumsum() - n_hits, n_hits)
    items = owners[np.repeat(first, n_hits) + within]
    pairs, shared = np.unique(hit_rows * len(of_item) + items, return_counts=True)
    best: dict[int, Overlap] = {}
    for pair, n in zip(pairs.tolist(), shared.tolist(), strict=True):
        row, item = divmod(pair, len(of_item))
        share = n / int(of_item[item])
        if share >= EIGHT_GRAMS and (row not in best or share > best[row].similarity):
            best[row] = Overlap(start + row, item, "8-grams", share)
    return list(best.values())


def _joined(grams: Sequence[NDArray[np.uint64]]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Put the 8-grams of several texts into one array, and the place of the text of each into another."""
    together = np.concatenate([np.zeros(0, dtype=np.uint64), *grams])
    return together, np.repeat(np.arange(len(grams)), [len(of_one) for of_one in grams]).astype(np.int64)


def _eight_grams(text: str) -> NDArray[np.uint64]:
    """Return the distinct 8-grams of a text's words."""
    return np.unique(eight_grams(fold_words(text)))


def overlap_notes(
    training: Sequence[Sourced], evaluated: Sequence[Sourced], where: str, with_choices: bool = False
) -> list[str]:
    """Say which training rows of a file ask in other words what is evaluated, the closest three by place."""
    asked, items = ([key(row.example, with_choices) for row in rows] for rows in (training, evaluated))
    answers = ["\n".join(row.example.references) for row in training]
    if not asked or not items:
        return []
    name = digest([_VERSION, WORDS_IN_COMMON, EIGHT_GRAMS, asked, answers, items])
    found = [Overlap(*one) for one in memo("overlap", name, lambda: overlaps(asked, items, answers=answers))]
    if not found:
        return []
    closest = "; ".join(
        f"{training[o.training].where} and {evaluated[o.evaluated].where} ({o.measure} {plain(o.similarity)})"
        for o in found[:3]
    )
    files = dict.fromkeys(evaluated[o.evaluated].where.rpartition(":")[0] for o in found)
    rows = pluralize(len(found), "row")
    return [
        f"{where}: {rows} may ask in other words what is evaluated; closest: {closest}{_mend(where, files)}"
    ]


def _mend(where: str, files: Iterable[str]) -> str:
    """Name the command that takes such rows of a file out of training; items of lm-eval have no file."""
    steps = []
    if where in files:  # the test items were drawn from the training file itself
        steps.append(
            f"`harness data split {shlex.quote(where)} --out DIR` keeps rows that are alike in one part"
        )
    if against := " ".join(f"--against {shlex.quote(file)}" for file in files if file and file != where):
        steps.append(f"`harness data dedup {shlex.quote(where)} {against} --out OUT` leaves them out")
    return "".join(f"; {step}" for step in steps)
