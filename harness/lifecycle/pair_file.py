"""Pair file: CSV with pairs of answers to randomly sampled items, in which people mark their preference.

Invariant: nothing reveals the candidate: sides are random for each item, and keys are digests. Pairs are
sampled as on the Rate page, in an order that later exports continue. A file is imported completely or not at
all.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness import config, store
from harness.analysis import human_preferences
from harness.analysis.candidate_facts import best_untrained_facts, is_fine_tuned, strongest_run
from harness.analysis.human_preferences import Turn
from harness.errors import IncompatibleRuns, Problem, UserError, refuse
from harness.evaluation.stored_scores import map_shown_pairs
from harness.experiment import StoredRows
from harness.experiment.study import load_study
from harness.lifecycle import label_file
from harness.lifecycle.gate_of_runs import candidate_runs
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
    pairs: list[tuple[Run, Run]] = []  # one for each seed of the fine-tunes, the best first
    if candidates:
        named_runs = [candidate_runs(stored, name) for name in candidates]
        labels = [runs[0].label for runs in named_runs]
        if len(named_runs) == 2 and named_runs[0][0].candidate != named_runs[1][0].candidate:
            pairs = list(product(named_runs[0], named_runs[1]))
    else:
        measured = label_file.list_measured_runs(stored)
        facts = [f for _, f in measured]
        best, untrained = strongest_run(facts), best_untrained_facts(facts)
        labels = [f.label for f in (best or untrained,) if f is not None]
        if best and untrained and best.name != untrained.name:
            untrained_run = next(run for run, f in measured if f is untrained)
            tuned = [(run, f) for run, f in measured if is_fine_tuned(f)]
            tuned.sort(key=lambda pair: (pair[1].name != best.name, pair[1] is not best))
            pairs = [(run, untrained_run) for run, _ in tuned]
    if not pairs:
        step = "name them: --candidates tuned,prompt"
        raise UserError("--pairs", ", ".join(labels) or "none", "two candidates", step)
    samples = [_draw(at, task, ratings, *runs) for runs in pairs]
    open_samples = sorted((s for s in samples if s.open_), key=lambda s: s.n_rated)
    if not open_samples:
        rated = "; ".join(f"{' and '.join(s.names)}, {s.n_rated} that differ, all rated" for s in samples)
        found = f"no pair of answers without a rating ({rated})"
        raise IncompatibleRuns(str(at.folder), found, "one", stored.typed.command("report"))
    names, sides, answer_pairs, open_, _ = open_samples[0]
    waiting = tuple(s.names[0] for s in open_samples[1:])
    rows = []
    for turn in open_[:n_items]:
        answers = answer_pairs[turn.example_id]
        left, right = answers if turn.left == "a" else answers[::-1]
        question = min((row.prompt for row in answers), key=len)  # a longer one may reveal the candidate
        reference = " | ".join(answers[0].references[:_REFERENCES_SHOWN])
        rows.append((_key(sides, turn), question, left.text, right.text, reference, ""))
    label_file.write_rows(file, COLUMNS, rows)
    return {"runs": names, "n_pairs": len(rows), "n_left": len(open_) - len(rows), "waiting": waiting}


def _draw(at: Store, task: Task, ratings: Sequence[Rating], run_a: Run, run_b: Run) -> _PairSample:
    sides = _sides(task, run_a, run_b)
    answer_pairs = _pair_rows(at, task, sides)
    rated = human_preferences.map_preference_shares(ratings, *sides.rows)
    turns = human_preferences.turns([*answer_pairs], "", *sides.rows)
    open_ = [turn for turn in turns if turn.example_id not in rated]
    return _PairSample((run_a.label, run_b.label), sides, answer_pairs, open_, len(answer_pairs) - len(open_))


def import_pairs(path: Path, file: Path, overrides: Sequence[str] = (), *, rater: str = "") -> dict[str, Any]:
    """Store people's preferences like the Rate page; all problems are refused together.

    Returns numbers of rows, and by pair of runs how many items are rated and how many of these are `counted`
    as a random sample: up to the one at which 95 % of the sampled pairs are rated.
    """
    stored = load_study(config.load(path, overrides))
    at, task = stored.store, stored.experiment.target
    runs = [run for run in store.list_runs(at) if run.state == "done" and f"{task.name}/test" in run.rows]
    pairs = {_pair_key(sides): sides for a, b in combinations(runs, 2) if (sides := _sides(task, a, b))}
    ratings, n_blank = _read(file, at, task, pairs, rater)
    store.save_ratings(at, ratings)
    all_ratings = store.list_ratings(at, task.name)
    by_id = {run.run_id: run for run in runs}
    rated = {(r.run_a, r.run_b): (r.rows_a, r.rows_b) for r in ratings}
    by_pair, counted = dict[str, int](), dict[str, int]()
    for (run_a, run_b), rows in rated.items():
        sides = _Sides((by_id[run_a], by_id[run_b]), rows)
        pair_label = " and ".join(run.label for run in sides.runs)
        by_pair[pair_label] = len(human_preferences.map_preference_shares(all_ratings, *sides.rows))
        shown = _pair_rows(at, task, sides)
        counted[pair_label] = len(human_preferences.map_counted_shares(all_ratings, shown, *sides.rows))
    return {"n_ratings": len(ratings), "n_blank": n_blank, "by_pair": by_pair, "counted": counted}


def _sides(task: Task, run_a: Run, run_b: Run) -> _Sides:
    first, second = sorted((run_a, run_b), key=lambda run: run.run_id)
    return _Sides((first, second), (first.rows[f"{task.name}/test"], second.rows[f"{task.name}/test"]))


def _pair_rows(at: Store, task: Task, sides: _Sides) -> dict[str, tuple[SampleResult, SampleResult]]:
    stored_rows = StoredRows(at)
    return map_shown_pairs(*(stored_rows.with_drawn(run, task) for run in sides.runs))


def _pair_key(sides: _Sides) -> str:
    return f"{_KEY}{digest(list(sides.rows))[:16]}"


def _key(sides: _Sides, turn: Turn) -> str:
    return f"{_pair_key(sides)}-{digest([*sides.rows, *turn])}"


def _read(
    file: Path, at: Store, task: Task, pairs: Mapping[str, _Sides], rater: str
) -> tuple[list[Rating], int]:
    problems, ratings, key_lines, n_blank = list[Problem](), list[Rating](), dict[str, int](), 0
    now = datetime.now(UTC).isoformat(timespec="microseconds")  # because a later import replaces it
    lines = list(label_file.read_rows(file, COLUMNS, ("key", "left", "right", BETTER)))
    pair_by_key: dict[str, tuple[_Sides, Turn, tuple[str, str]]] = {}
    for name in sorted({key.rpartition("-")[0] for _, (key, *_) in lines} & pairs.keys()):
        for item, (a, b) in _pair_rows(at, task, pairs[name]).items():
            turns = ((Turn(item, "a"), (a.text, b.text)), (Turn(item, "b"), (b.text, a.text)))
            pair_by_key |= {_key(pairs[name], turn): (pairs[name], turn, texts) for turn, texts in turns}
    for line, (key, left, right, written) in lines:
        where = f"{file}:{line}"
        if not written:
            n_blank += 1
        elif key not in pair_by_key:
            problems.append(label_file.unknown_key(where, key, "pair of answers"))
        elif key in key_lines:
            expected = "one preference for each pair"
            problems.append(Problem(where, f"a key of line {key_lines[key]} again", expected, "keep one"))
        elif _words(*pair_by_key[key][2]) == _words(right, left) != _words(left, right):
            step = "put them back, or export again"
            problems.append(Problem(where, "the texts of left and right exchanged", "them as exported", step))
        elif written.casefold() not in _WORDS:
            step = "write which answer is better, or leave the row blank"
            problems.append(Problem(where, f"{BETTER} {written!r}", "left, right or tie", step))
        else:
            key_lines[key] = line
            sides, turn, _ = pair_by_key[key]
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


def _words(*texts: str) -> list[list[str]]:  # words, to ignore whitespace that a spreadsheet changed
    return [spreadsheet_lines(text).split() for text in texts]
