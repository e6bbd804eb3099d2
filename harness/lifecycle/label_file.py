"""Label files: CSV files of answers for people to label, exported and imported.

Invariant: a row does not reveal the candidate. Items, not answers, are sampled, in a random order that later
exports continue, so the labels up to any row are a random sample. A file is imported completely or not at
all, and a judge's file only under the criteria and scale in its keys.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from harness import config, report, store
from harness.analysis.candidate_facts import CandidateFacts, best_untrained_facts, strongest_run
from harness.analysis.economics import apply_budgets
from harness.analysis.people_labels import Labels, answer_digest, draw_items, is_correctable, select_scored
from harness.config import digest_question, rubric_of
from harness.errors import CandidateFailed, IncompatibleRuns, Problem, UserError, did_you_mean, refuse
from harness.experiment.study import Study, load_study, reached_on_target, read_labels
from harness.formatting import count
from harness.lifecycle.gate_of_runs import candidate_runs
from harness.metrics import Metric, load_metrics
from harness.records import AnswerLabel, LabelSet, Run, SampleResult, digest
from harness.report.escape import write_csv
from harness.spec import Task, metric_name

_DELIMITERS = ",;\t"
_LONGEST_CELL = 2**30  # characters of a cell that is read
_READ: Any = {"encoding": "utf-8-sig", "errors": "replace", "newline": ""}


def refuse_unwritable(file: Path) -> None:
    """Refuse a file that exists, has another suffix, or has no folder."""
    if file.exists():
        raise UserError(str(file), "a file", "a new name", "name another file, or remove it")
    if file.suffix.lower() != ".csv":
        raise UserError(str(file), "another ending", "a name that ends with .csv", "labels.csv")
    if not file.parent.is_dir():
        step = "make the folder, or name another one"
        raise UserError(str(file.parent), "no folder", "the folder of the file", step)


def write_rows(file: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write the file atomically, with the byte order mark by which spreadsheets recognise UTF-8."""
    stream = io.StringIO()
    write_csv(stream, columns, rows)
    report.write_forms(file.parent, file.stem, {file.suffix: "\ufeff" + stream.getvalue()})


def read_rows(
    file: Path, columns: Sequence[str], needed: Sequence[str]
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield the line number of each row with its `needed` cells, in any form that spreadsheets write."""
    with file.open(**_READ) as stream:
        head = stream.readline()
        stream.seek(0)
        csv.field_size_limit(_LONGEST_CELL)
        reader = csv.DictReader(stream, delimiter=_delimiter(head, needed))
        header_names = [(name or "").strip().lower() for name in reader.fieldnames or ()]
        for defect, n in (("no column", 0), ("more than one column", 2)):
            if wrong := [name for name in needed if min(header_names.count(name), 2) == n]:
                expected = f"the columns {', '.join(columns)}, as harness rate export writes them"
                step = "remove or rename the others" if n else "keep the first line as it was"
                raise UserError(f"{file}:1", f"{defect} {' and '.join(wrong)}", expected, step)
        reader.fieldnames = header_names
        line = reader.line_num + 1
        for row in reader:
            yield line, tuple((row[name] or "").strip() for name in needed)
            line = reader.line_num + 1


def has_column(file: Path, name: str) -> bool:
    """Tell whether a file's header names a column."""
    with file.open(**_READ) as stream:
        head = stream.readline()
    return name in _cells(head, _delimiter(head, [name]))


def _delimiter(head: str, needed: Sequence[str]) -> str:
    """Return the delimiter by which a line names the needed columns, or its most frequent one."""
    matches = (delimiter for delimiter in _DELIMITERS if {*needed} <= {*_cells(head, delimiter)})
    return next(matches, max(_DELIMITERS, key=head.count))


def _cells(head: str, delimiter: str) -> list[str]:
    return [cell.strip().lower() for cell in next(csv.reader([head], delimiter=delimiter), [])]


def unknown_key(where: str, key: str, kind: str) -> Problem:
    """Describe that a key matches no stored answer or pair of answers."""
    found = f"key {key!r}, which no stored {kind} has" if key else "no key"
    step = "keep the column key as it was exported; export again where answers or metrics changed since"
    return Problem(where, found, "a key of harness rate export", step)


COLUMNS = ("key", "question", "answer", "reference", "label")
_KEY = "answer-"  # prefix of the digest, which a spreadsheet might otherwise read as a number
_JOIN = "+"  # joins the digests of a text that answers several prompts
_KEY_END = "-"  # ends the digest of a judge's criteria and scale
_KEY_DIGITS = 8
_REFERENCES_SHOWN = 3
_WORDS = {"no": 0.0, "yes": 1.0}


class _Arm(NamedTuple):
    """Run's answers by item, the items without a label, and the number of answers without a score."""

    label: str
    rows: Mapping[str, SampleResult]
    open_: set[str]
    n_failed: int


def export_answers(
    path: Path,
    file: Path,
    overrides: Sequence[str] = (),
    *,
    n_items: int = 100,
    metric: str = "",
    candidates: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the answers of candidates to randomly sampled test items of the target, for labelling.

    The default `candidates` are the best fine-tune and the best untrained candidate on validation, the
    default `metric` the deciding one. Of several seeds the one with the fewest labels is exported. Returns
    what was written: the `waiting` are runs of other seeds whose answers lack labels, too.
    """
    refuse_unwritable(file)
    stored = load_study(config.load(path, overrides))
    at, task = stored.store, stored.experiment.target
    goal = stored.experiment.gate.target
    if goal.win_rate is not None and metric and metric in (goal.by, metric_name(goal.by)):
        found = f"{metric!r}, the judge of the win rate"
        raise UserError("--metric", found, "a metric of single answers", f"{file} --pairs rates pairs")
    measured = _metric(task, metric)
    labels, drawn = read_labels(at, task, measured.name), stored.rows.with_drawn
    if candidates:
        chosen_runs = [candidate_runs(stored, name) for name in candidates]
    else:
        measured_runs = list_measured_runs(stored)
        facts = [f for _, f in measured_runs]
        chosen = [f for f in (strongest_run(facts), best_untrained_facts(facts)) if f is not None]
        measured_runs.sort(key=lambda run_facts: run_facts[1] not in chosen)
        chosen_runs = [[run for run, f in measured_runs if f.name == choice.name] for choice in chosen]
    seeds = [[_arm(measured.name, run, drawn(run, task), labels) for run in runs] for runs in chosen_runs]
    chosen_arms = [max(of_recipe, key=lambda arm: len(arm.open_)) for of_recipe in seeds]
    arms = [arm.rows for arm in chosen_arms]
    shared = draw_items(set[str]().union(*arms), task.name, measured.name)
    open_ = [item for item in shared if any(item in arm.open_ for arm in chosen_arms)]
    if not open_:
        labels_of = " and ".join(arm.label for arm in chosen_arms)
        found = f"no answer without a label for {measured.name}, of {labels_of}"
        failed = sum(arm.n_failed for arm in chosen_arms)
        also = f" ({count(failed)} failed or could not be scored)" if failed else ""
        raise IncompatibleRuns(str(at.folder), f"{found}{also}", "one to label", "harness report")
    begins, rows = _key_begins(task, measured.name), list[tuple[str, ...]]()
    for item in open_[:n_items]:
        answers = [arm[item] for arm in arms if item in arm]
        question = min((row.prompt for row in answers), key=len)  # a longer one may reveal the candidate
        unlabelled = {key: row for row in answers if (key := answer_digest(measured.name, row)) not in labels}
        of_text: dict[str, list[str]] = {}
        for key in sorted(unlabelled):
            of_text.setdefault(unlabelled[key].text, []).append(key)
        for text, keys in of_text.items():
            reference = " | ".join(unlabelled[keys[0]].references[:_REFERENCES_SHOWN])
            rows.append((begins + _JOIN.join(keys), question, text, reference, ""))
    write_rows(file, COLUMNS, rows)
    rubric, n_drawn = rubric_of(task, measured.name), min(n_items, len(open_))
    names = tuple(arm.label for arm in chosen_arms)
    still_open = (arm.label for arms_of in seeds for arm in arms_of if arm.open_)
    return {
        "metric": measured.name,
        "runs": names,
        "n_items": n_drawn,
        "n_answers": len(rows),
        "n_left": len(open_) - n_drawn,
        "criteria": rubric.criteria.strip() if rubric else "",
        "scale": f"{rubric.grades[0]},{rubric.grades[-1]}" if rubric else "",
        "waiting": tuple(label for label in still_open if label not in names),
    }


def import_labels(
    path: Path,
    file: Path,
    overrides: Sequence[str] = (),
    *,
    rater: str = "",
    scale: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Store the labels of a file, which are on a `scale`; return how many each run has now."""
    stored = load_study(config.load(path, overrides))
    at, task = stored.store, stored.experiment.target
    if scale and not -inf < scale[0] < scale[1] < inf:
        found = f"{scale[0]:g} and {scale[1]:g}"
        raise UserError("--scale", found, "the lowest label, then the highest", "--scale 1,5")
    runs = [run for run in store.list_runs(at) if run.state == "done" and f"{task.name}/test" in run.rows]
    digests = dict.fromkeys(run.rows[f"{task.name}/test"] for run in runs)
    rows = [row for rows_digest in digests for row in store.read_rows(at, rows_digest)]
    metrics = load_metrics(task)
    scored = ((metric, row) for row in rows for metric in metrics if metric in row.parts)
    answers_by_key = {_KEY + answer_digest(metric, row): (metric, row.example_id) for metric, row in scored}
    metric, labels, n_labels, n_blank = _read(file, answers_by_key, scale or (0.0, 1.0), task)
    if scale is None and (rubric := rubric_of(task, metric)):
        # Numbers that fit both the scale of a judge's rubric and the range from 0 to 1.
        cells = {label for _, (label,) in read_rows(file, COLUMNS, ("label",))} - {""}
        if cells and cells <= {"0", "1"} and cells <= set(rubric.grades):
            low, high = rubric.grades[0], rubric.grades[-1]
            found = f"no label but {' and '.join(sorted(cells))}, for a rubric from {low} to {high}"
            step = f"--scale {low},{high} where they are the rubric's grades, else --scale 0,1"
            raise UserError(f"{file}: label", found, "the scale of the labels", step)
    now = datetime.now(UTC).isoformat(timespec="microseconds")  # because a later import replaces it
    entry = LabelSet("", now, task.name, "test", metric, rater, tuple(labels), digest_question(task, metric))
    store.save_labels(at, replace(entry, id=digest(asdict(entry))))
    latest, by_run = read_labels(at, task, metric), dict[str, int]()
    for run in runs:
        scored_rows = [row for row in stored.rows.with_drawn(run, task) if metric in row.parts]
        answers = (answer_digest(metric, row) for row in select_scored(metric, scored_rows).values())
        by_run[run.label] = sum(answer in latest for answer in answers)
    labelled = {run: n for run, n in by_run.items() if n}
    return {"metric": metric, "n_labels": n_labels, "n_blank": n_blank, "by_run": labelled}


def _metric(task: Task, name: str) -> Metric:
    metrics = load_metrics(task)
    chosen = metrics.get(name or task.primary_metric)
    if chosen is None:
        hint = did_you_mean(name, list(metrics))
        raise UserError("--metric", f"{name!r}", f"one of {', '.join(metrics)}", hint)
    if not is_correctable(chosen):
        expected = "a metric that is the mean of one number in [0, 1] an item"
        raise UserError("--metric", f"{chosen.name}, which is none", expected, "name another one")
    return chosen


def _arm(metric: str, run: Run, rows: Sequence[SampleResult], labels: Labels) -> _Arm:
    scored = select_scored(metric, rows)
    open_ = {item for item, row in scored.items() if answer_digest(metric, row) not in labels}
    return _Arm(run.label, scored, open_, len(rows) - len(scored))


def list_measured_runs(stored: Study) -> list[tuple[Run, CandidateFacts]]:
    """List the runs of the selected candidates as written now, with their scores on the target."""
    task = stored.experiment.target
    metric, runs = load_metrics(task)[task.primary_metric], list[Run]()
    for name in stored.selected:
        with suppress(IncompatibleRuns):
            runs += candidate_runs(stored, name)
    measured: list[tuple[Run, CandidateFacts]] = []
    for run in runs:
        with suppress(CandidateFailed, KeyError):
            measured.append((run, reached_on_target(stored, run, metric)))
    within = apply_budgets([f for _, f in measured], stored.experiment.decide)
    if not measured:
        where, step = str(stored.store.folder), stored.typed.command("compare")
        raise IncompatibleRuns(where, f"no run with answers to {task.name}", "one to label", step)
    return [(run, f) for (run, _), f in zip(measured, within, strict=True)]


def _key_begins(task: Task, metric: str) -> str:
    """Return the prefix of the keys of a metric's answers; a judge's includes its criteria and scale."""
    question = digest_question(task, metric)[:_KEY_DIGITS]
    return f"{_KEY}{question}{_KEY_END}" if question else _KEY


def _read(
    file: Path, answers_by_key: Mapping[str, tuple[str, str]], scale: tuple[float, float], task: Task
) -> tuple[str, list[AnswerLabel], int, int]:
    """Read a file's metric and labels from 0 to 1, and its numbers of labelled and blank rows."""
    problems, labels, key_lines, n_blank = list[Problem](), list[AnswerLabel](), dict[str, int](), 0
    metrics, begins = set[str](), set[str]()
    for line, (key, written) in read_rows(file, COLUMNS, ("key", "label")):
        where, begin, keys = f"{file}:{line}", "", [key]
        if key.startswith(_KEY):  # an exported key: its prefix, then the keys of its answers
            question, end, answers = key.removeprefix(_KEY).rpartition(_KEY_END)
            begin, keys = f"{_KEY}{question}{end}", [_KEY + answer for answer in answers.split(_JOIN)]
        if not written:
            n_blank += 1
        elif any(k not in answers_by_key for k in keys):
            problems.append(unknown_key(where, key, "answer"))
        elif repeated_lines := [key_lines[k] for k in keys if k in key_lines]:
            expected = "one label for each answer"
            problems.append(Problem(where, f"a key of line {repeated_lines[0]} again", expected, "keep one"))
        elif (label := _number(written, scale)) is None:
            low, high = (f"{end:g}" for end in scale)
            step = "fix the label, or say which scale it is on, as in --scale 1,5"
            problems.append(Problem(where, f"label {written!r}", f"a number from {low} to {high}", step))
        else:
            key_lines |= dict.fromkeys(keys, line)
            metrics |= {answers_by_key[k][0] for k in keys}
            begins.add(begin)
            labels += [AnswerLabel(k.removeprefix(_KEY), answers_by_key[k][1], label) for k in keys]
    if len(metrics) > 1:
        found = f"answers exported for {', '.join(sorted(metrics))}"
        problems.append(Problem(str(file), found, "those for one metric", "import them as two files"))
    elif metrics and begins != {_key_begins(task, *metrics)}:
        found = f"labels for {', '.join(metrics)} by other criteria or another scale"
        step = "export again and label by the rubric as it is, or put the rubric back"
        problems.append(Problem(str(file), found, "those that the rubric has now", step))
    if not labels and not problems:
        step = "fill in the column label of each row"
        problems.append(Problem(str(file), "no label", "at least one", step))
    refuse(problems)
    return metrics.pop(), labels, len({*key_lines.values()}), n_blank


def _number(written: str, scale: tuple[float, float]) -> float | None:
    if (word := written.casefold()) in _WORDS:
        return _WORDS[word]
    if "_" in written:  # only Python reads 1_0 as 10
        return None
    try:
        value = float(written.replace(",", "."))  # some spreadsheets write decimal commas
    except ValueError:
        return None
    low, high = scale
    return (value - low) / (high - low) if low <= value <= high else None
