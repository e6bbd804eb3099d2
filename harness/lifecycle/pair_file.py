"""Pair file: CSV with pairs of answers to randomly sampled items, in which people mark their preference.

Invariant: nothing reveals the candidate: sides are random for each item, and keys are digests. Pairs are
sampled as on the Rate page, in an order that later exports continue. A file is imported completely or not at
all.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness import config, store
from harness.analysis import human_preferences
from harness.analysis.candidate_facts import alternative, is_fine_tuned, strongest_run
from harness.analysis.human_preferences import Turn
from harness.errors import IncompatibleRuns, Problem, UserError, refuse
from harness.evaluation.judging_stage import map_shown_pairs
from harness.experiment import StoredRows
from harness.experiment.study import Study, load_study
from harness.lifecycle import label_file
from harness.lifecycle.gates import candidate_runs
from harness.records import Rating, Run, SampleResult, digest
from harness.report.escape import spreadsheet_lines
from harness.spec import Task
from harness.store import Store

BETTER = "better"
COLUMNS = ("key", "question", "left", "right", "reference", BETTER)
_KEY = "pair-"
_REFERENCES_SHOWN = 3
_WORDS = ("left", "right", "tie")
Choice = Literal["a", "b", "tie"]


class _Sides(NamedTuple):
    runs: tuple[Run, Run]
    rows: tuple[str, str]


class _PairSample(NamedTuple):
    """Pairs of two runs: the runs as named, rows that differ, and unrated items in sampling order."""

    names: tuple[str, str]
    sides: _Sides
    shown: dict[str, tuple[SampleResult, SampleResult]]
    open_: list[Turn]
    n_rated: int


def export_pairs(
    path: Path,
    file: Path,
    overrides: Sequence[str] = (),
    *,
    n_items: int = 100,
    candidates: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the answers of two candidates to randomly sampled test items of the target, for comparison.

    Of several seeds and fine-tunes the one with the fewest ratings is exported, ties by rank. Returns what
    was written: the `waiting` are other runs that have pairs without ratings.
    """
    label_file.refuse_unwritable(file)
    stored = load_study(config.load(path, overrides))
    at, task = stored.store, stored.experiment.target
    ratings = store.list_ratings(at, task.name)
    drawn = [_draw(at, task, ratings, *runs) for runs in _pairs_of_runs(stored, candidates)]
    lacking = sorted((one for one in drawn if one.open_), key=lambda one: one.n_rated)
    if not lacking:
        found = "; ".join(f"{' and '.join(one.names)}, {one.n_rated} that differ, all rated" for one in drawn)
        raise IncompatibleRuns(
            f"{stored.store.folder}: found no pair of answers without a rating ({found}); expected one; "
            f"next: {stored.typed.command('report')}"
        )
    names, sides, shown, open_, _ = lacking[0]
    waiting = tuple(one.names[0] for one in lacking[1:])
    rows = []
    for turn in open_[:n_items]:
        answers = shown[turn.example_id]
        left, right = answers if turn.left == "a" else answers[::-1]
        question = min((row.prompt for row in answers), key=len)  # a longer one may reveal the candidate
        reference = " | ".join(answers[0].references[:_REFERENCES_SHOWN])
        rows.append((_key(sides, turn), question, left.text, right.text, reference, ""))
    label_file.write_rows(file, COLUMNS, rows)
    return {"runs": names, "n_pairs": len(rows), "n_left": len(open_) - len(rows), "waiting": waiting}


def _pairs_of_runs(stored: Study, candidates: Sequence[str]) -> list[tuple[Run, Run]]:
    """List pairs of runs to compare, one for each seed of the fine-tunes, the best first."""
    if candidates:
        named = [candidate_runs(stored, name) for name in candidates]
        if len(named) == 2 and named[0][0].candidate != named[1][0].candidate:
            return list(product(named[0], named[1]))
        raise _phrase_not_two(runs[0].label for runs in named)
    measured = label_file.list_measured_runs(stored)
    facts = [f for _, f in measured]
    best, untrained = strongest_run(facts), alternative(facts)
    if best is None or untrained is None or best.name == untrained.name:
        raise _phrase_not_two(f.label for f in (best or untrained,) if f is not None)
    other = next(run for run, f in measured if f is untrained)
    tuned = [(run, f) for run, f in measured if is_fine_tuned(f)]
    tuned.sort(key=lambda one: (one[1].name != best.name, one[1] is not best))
    return [(run, other) for run, _ in tuned]


def _phrase_not_two(labels: Iterable[str]) -> UserError:
    found = ", ".join(labels) or "none"
    return UserError("--pairs", found, "two candidates", "name them: --candidates tuned,prompt")


def _draw(at: Store, task: Task, ratings: Sequence[Rating], one: Run, other: Run) -> _PairSample:
    sides = _sides(task, one, other)
    shown = _pair_rows(at, task, sides)
    rated = human_preferences.map_preference_shares(ratings, *sides.rows)
    turns = human_preferences.turns([*shown], "", *sides.rows)
    open_ = [turn for turn in turns if turn.example_id not in rated]
    return _PairSample((one.label, other.label), sides, shown, open_, len(shown) - len(open_))


def import_pairs(path: Path, file: Path, overrides: Sequence[str] = (), *, rater: str = "") -> dict[str, Any]:
    """Store people's preferences like the Rate page; all problems are refused together.

    Returns numbers of rows, and by pair of runs how many items are rated and how many of these are `counted`
    as a random sample: up to the one at which 95 % of the sampled pairs are rated.
    """
    stored = load_study(config.load(path, overrides))
    at, task = stored.store, stored.experiment.target
    runs = [run for run in store.list_runs(at) if run.state == "done" and f"{task.name}/test" in run.rows]
    pairs = {
        _pair_key(sides): sides for one, other in combinations(runs, 2) if (sides := _sides(task, one, other))
    }
    ratings, n_blank = _read(file, at, task, pairs, rater)
    store.save_ratings(at, ratings)
    every = store.list_ratings(at, task.name)
    by_id = {run.run_id: run for run in runs}
    rated = {(r.run_a, r.run_b): (r.rows_a, r.rows_b) for r in ratings}
    by_pair, counted = dict[str, int](), dict[str, int]()
    for (run_a, run_b), rows in rated.items():
        sides = _Sides((by_id[run_a], by_id[run_b]), rows)
        both = " and ".join(run.label for run in sides.runs)
        by_pair[both] = len(human_preferences.map_preference_shares(every, *sides.rows))
        counted[both] = len(
            human_preferences.map_counted_shares(every, _pair_rows(at, task, sides), *sides.rows)
        )
    return {"n_ratings": len(ratings), "n_blank": n_blank, "by_pair": by_pair, "counted": counted}


def _sides(task: Task, one: Run, other: Run) -> _Sides:
    first, second = sorted((one, other), key=lambda run: run.run_id)
    return _Sides((first, second), (first.rows[f"{task.name}/test"], second.rows[f"{task.name}/test"]))


def _pair_rows(at: Store, task: Task, sides: _Sides) -> dict[str, tuple[SampleResult, SampleResult]]:
    read = StoredRows(at)
    return map_shown_pairs(*(read.with_drawn(run, task) for run in sides.runs))


def _pair_key(sides: _Sides) -> str:
    return f"{_KEY}{digest(list(sides.rows))[:16]}"


def _key(sides: _Sides, turn: Turn) -> str:
    return f"{_pair_key(sides)}-{digest([*sides.rows, *turn])}"


def _read(
    file: Path, at: Store, task: Task, pairs: Mapping[str, _Sides], rater: str
) -> tuple[list[Rating], int]:
    problems, ratings, seen, n_blank = list[Problem](), list[Rating](), dict[str, int](), 0
    now = datetime.now(UTC).isoformat(timespec="microseconds")  # because a later import replaces it
    lines = list(label_file.read_rows(file, COLUMNS, ("key", "left", "right", BETTER)))
    known: dict[str, tuple[_Sides, Turn, tuple[str, str]]] = {}  # by key
    for name in sorted({key.rpartition("-")[0] for _, (key, *_) in lines} & pairs.keys()):
        for item, (one, other) in _pair_rows(at, task, pairs[name]).items():
            turns = ((Turn(item, "a"), (one.text, other.text)), (Turn(item, "b"), (other.text, one.text)))
            known |= {_key(pairs[name], turn): (pairs[name], turn, texts) for turn, texts in turns}
    for line, (key, left, right, written) in lines:
        where = f"{file}:{line}"
        if not written:
            n_blank += 1
        elif key not in known:
            problems.append(label_file.unknown_key(where, key, "pair of answers"))
        elif key in seen:
            expected = "one preference for each pair"
            problems.append(Problem(where, f"a key of line {seen[key]} again", expected, "keep one"))
        elif _words(*known[key][2]) == _words(right, left) != _words(left, right):
            step = "put them back, or export again"
            problems.append(Problem(where, "the texts of left and right exchanged", "them as exported", step))
        elif written.casefold() not in _WORDS:
            step = "write which answer is better, or leave the row blank"
            problems.append(Problem(where, f"{BETTER} {written!r}", "left, right or tie", step))
        else:
            seen[key] = line
            sides, turn, _ = known[key]
            right_run: Choice = "b" if turn.left == "a" else "a"
            choice: Choice = {"left": turn.left, "right": right_run}.get(written.casefold(), "tie")
            run_a, run_b = (run.run_id for run in sides.runs)
            rating_id = digest([rater, now, turn.example_id, *sides.rows])
            about = (rating_id, rater, now, task.name, "test", turn.example_id)
            ratings.append(Rating(*about, run_a, run_b, *sides.rows, turn.left, choice))
    if not ratings and not problems:
        step = f"fill in the column {BETTER} of each row: left, right or tie"
        problems.append(Problem(str(file), "no preference", "at least one", step))
    refuse(problems)
    return ratings, n_blank


def _words(*texts: str) -> list[list[str]]:  # however a spreadsheet changed their whitespace
    return [spreadsheet_lines(text).split() for text in texts]
