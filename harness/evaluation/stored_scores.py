"""Scores of stored answers: judges grade them and pairs of them, and metrics score them again.

Answers are scored first while they are made (`evaluate_block`, by `score_output`); this is what comes later.

Invariant: it runs while no candidate is open, so that a local judge can be the one model in memory; a
failure keeps all answers and grades for the next run. Equal answers are not a pair, and a failed answer loses
without a judge. An unreadable preference counts as half a win for each side. A reward depends only on the
item, the text and the reward model, and is reused. Re-scored rows equal those of a new evaluation.
Source: the best of n by a reward model, Stiennon et al. 2020, arXiv:2009.01325
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean
from typing import Any, NamedTuple

from harness import store
from harness.errors import CandidateFailed, SharedFailure
from harness.evaluation import AnswerScore, EvaluationJob, answer_fields, score_output
from harness.evaluation.candidates import base_weights
from harness.evaluation.judge_calls import ask_endpoint, cost_usd, grade_by_likelihood, list_paid_grades
from harness.evaluation.judges import GRADED_ROWS, GradeReader, Judge, JudgedMetric, Order, UngradedAnswer
from harness.evaluation.row_sets import Chooser, RowSet, suite_sets
from harness.evaluation.runner import answer, fill, find_base_rows, open_weights
from harness.evaluation.session import MeasuredTask, Session
from harness.formatting import count, percent, pluralize, usd
from harness.metrics import Parts
from harness.models.hardware import Machine
from harness.models.hub import ModelSource, chat_template
from harness.records import (
    BLOCK,
    AnchorCheck,
    Example,
    Grade,
    Output,
    RowsIdentity,
    Run,
    Sample,
    SampleResult,
    digest,
)
from harness.store import read_rechecks
from harness.training import Weights, open_scorer

Rows = Sequence[SampleResult]
_TOGETHER = 32  # answers that a local judge scores and stores together


def answer_and_score(
    session: Session, weights: Weights, sets: Sequence[RowSet], name: str, base: ModelSource | None = None
) -> None:
    """Compute the missing answers of sets, with the control arm of `base`, and score them."""
    if missing_sets := score_answered(session, sets):
        answer(session, weights, missing_sets, name, base)
        score_answered(session, missing_sets)


def score_answered(session: Session, sets: Sequence[RowSet]) -> list[RowSet]:
    """Score stored answers, graded first if a judge scores them; return the sets without all answers."""
    ungraded: list[UngradedAnswer] = []
    missing_sets = rescore_stored(session, sets, ungraded)
    if not ungraded:
        return missing_sets
    grade_answers(session, ungraded)
    return rescore_stored(session, missing_sets)


def base_arm(session: Session, source: ModelSource) -> dict[str, str]:
    """Measure a base on the capability suite, as it is served; returns the row set of each task."""
    return suite_arm(session, base_weights(source), f"base {source.quantization}".rstrip(), shared=True)


def suite_arm(session: Session, weights: Weights, name: str, *, shared: bool = False) -> dict[str, str]:
    """Measure weights on the suites unless their rows are stored; return the row set of each task.

    `shared` row sets are also shared with experiments in other folders of this machine.
    """
    sets = suite_sets(session, weights)
    missing_sets = score_answered(session, sets)
    if missing_sets := find_base_rows(session, missing_sets) if shared else missing_sets:
        with open_weights(session, weights) as candidate:
            fill(session, candidate, missing_sets, name, shared=shared)
        score_answered(session, missing_sets)
    return {s.measured.task.name: s.identity.digest for s in sets}


def is_measured(session: Session, source: ModelSource) -> bool:
    """Tell whether a base is fully evaluated on the suites, here or earlier in another folder."""
    return not find_base_rows(session, score_answered(session, suite_sets(session, base_weights(source))))


def grade_answers(session: Session, ungraded: Iterable[UngradedAnswer]) -> None:
    """Let judges grade answers, book by book; SharedFailure if a judge fails or a budget is spent."""
    books: dict[str, dict[str, UngradedAnswer]] = {}
    for entry in ungraded:
        books.setdefault(entry.judge.book, {})[entry.key] = entry
    for answers in books.values():
        _grade_book(session, list(answers.values()))


def _grade_book(session: Session, answers: Sequence[UngradedAnswer]) -> None:
    judged, judge = answers[0].judged, answers[0].judge
    label = f"{judged.metric}: {pluralize(len(answers), 'answer')} graded by {judge.name}"
    with session.progress.stage(label) as advance:
        finished_grades: list[Grade] = []

        def keep(grades: Sequence[Grade]) -> None:
            store.keep_grades(judged.store, judge.book, judge.identity, grades)
            finished_grades.extend(grades)
            advance(len(finished_grades), len(answers))

        try:
            if judge.settings:
                ask_endpoint(session.checked_judges, session.refused_judges, answers, keep)
            elif judge.weights:
                assert judge.weights.source is not None, "weights that judge name their base"
                chat = bool(chat_template(judge.weights.source))
                with open_weights(session, judge.weights) as candidate:
                    for start in range(0, len(answers), _TOGETHER):
                        batch = answers[start : start + _TOGETHER]
                        keep(list(grade_by_likelihood(candidate, batch, chat=chat)))
            else:
                raise CandidateFailed(judge.absent, "a judge that is trained")
        except CandidateFailed as error:
            raise SharedFailure(f"{judged.metric}: {error.reason}", error.knob) from None


def judge_remarks(
    tasks: Iterable[MeasuredTask], pair_metric: JudgedMetric | None, runs: Iterable[Run], max_errors: float
) -> Iterator[str]:
    """Describe what each judge graded and compared, its cost, unreadable grades, and whose answers it saw."""
    decides: dict[tuple[str, ...], bool] = {}
    metric_by_books: dict[tuple[str, ...], JudgedMetric] = {}
    for task in tasks:
        for judged_metric in task.judged.values():
            books = (judged_metric.metric, *(judge.book for judge in judged_metric.judges))
            metric_by_books.setdefault(books, judged_metric)
            decides[books] = decides.get(books, False) or judged_metric.metric == task.task.primary_metric
    for books, judged_metric in metric_by_books.items():
        effect = "count as failed answers" if decides[books] else "leave these answers without that score"
        for judge, grades in zip(judged_metric.judges, judged_metric.grades(), strict=True):
            yield _remark_of(judged_metric, judge, grades, ("answers graded", "grades"), effect)
    # Models prefer their own text (Panickssery et al. 2024, arXiv 2404.13076).
    makers: dict[str, list[str]] = {}
    for run in runs:
        if run.state == "done":
            makers.setdefault(run.weights_digest, []).append(run.label)
    all_judged = [*metric_by_books.values(), *([pair_metric] if pair_metric else [])]
    judge_by_book = {(m.metric, judge.book): judge for m in all_judged for judge in m.judges}
    for (metric, _), judge in judge_by_book.items():
        if judge.weights and (labels := makers.get(judge.weights.digest)):
            text = f"{metric}: {judge.name} grades answers of its own weights ({', '.join(labels)})"
            step = "let another model judge, or people label answers of both sides"
            yield f"{text}, and models prefer what they would say themselves; {step}"
    limit = f"{percent(max_errors)} % of items (gate.max_errors)"
    effect = f"make their items half a win, beyond {limit} the win rate is left open"
    for judge, grades in zip(pair_metric.judges, pair_metric.grades(), strict=True) if pair_metric else ():
        if pair_metric and grades:
            yield _remark_of(pair_metric, judge, grades, ("comparisons made", "preferences"), effect)


def _remark_of(
    judged: JudgedMetric, judge: Judge, book: Mapping[str, Grade], words: tuple[str, str], effect: str
) -> str:
    action, noun = words
    grades = [grade for grade in book.values() if grade.task != GRADED_ROWS]
    remark = f"{judged.metric}: {count(len(grades))} {action} by {judge.name}"
    if judge.settings and judge.prices is not None:
        paid = [grade for grade in list_paid_grades(judged, judge) if grade.task != GRADED_ROWS]
        cost = cost_usd(paid, judge.prices)
        cost_text = " at an unknown cost, the server sends no usage"
        remark += cost_text if cost is None else f" for {usd(cost)} USD"
    failed_grades = [grade for grade in grades if grade.value is None]
    if errors := [grade.error for grade in failed_grades if grade.status == "error"]:
        remark += f"; {count(len(errors))} of these {noun} could not be asked for ({errors[0]})"
    if n_unread := len(failed_grades) - len(errors):
        remark += f"; {count(n_unread)} of these {noun} could not be read"
    remark += f" and {effect}" if failed_grades else ""
    if failed_grades and judge.settings:
        remark += f" (attempts: {judge.attempts + 1} in the rubric asks about them again)"
    readable = [grade for grade in grades if grade.order and grade.value is not None]
    if readable:  # each pair is shown in both orders, so half is neutral
        share_first = percent(fmean(_value_of_first(grade.order, grade.value or 0.0) for grade in readable))
        remark += f"; the answer shown first won {share_first} % of comparisons, where 50 % favours no place"
    if checks := read_rechecks(judged.store, judge.book, AnchorCheck):
        last, n = checks[-1], len(checks[-1].grades)
        remark += f"; of {count(n)} answers graded again {count(last.n_moved)} got another grade"
    return remark


_ORDERS: tuple[Order, ...] = ("first", "second")
_TIE = 0.5


def list_ungraded_pairs(
    judged: JudgedMetric, examples: Sequence[Example], base: Rows, new: Rows
) -> list[UngradedAnswer]:
    """List the pairs that a judge has not compared, each in both orders."""
    grades_by_judge = list(zip(judged.judges, judged.grades(), strict=True))
    items = {example.id: example for example in examples}
    ungraded = []
    for base_row, new_row in pair_rows(base, new):
        if not answers_differ(base_row, new_row) or _is_failed(base_row, new_row):
            continue
        example = replace(items[new_row.example_id], references=(base_row.text,))
        for (judge, grades), order in product(grades_by_judge, _ORDERS):
            if (key := _key(base_row, new_row, order)) not in grades:
                fields = (judged, judge, new_row.task, example, new_row.text, key, order)
                ungraded.append(UngradedAnswer(*fields))
    return ungraded


class Preferences(NamedTuple):
    """Preferences of judges between two arms' answers, by item with different answers.

    `won` is the preference for the new answer in [0, 1], the mean over judges and orders. Items that a judge
    has yet to compare are left out; one with an unreadable preference is half a win and `unread`. `first` is
    the preference for the answer shown first.
    """

    won: dict[str, float]
    unread: set[str]
    first: dict[str, float]


def preferences(grades: Sequence[Mapping[str, Grade]], base: Rows, new: Rows) -> Preferences:
    """Read judges' preferences between two arms' answers; a failed answer loses without them."""
    differing_pairs = (pair for pair in pair_rows(base, new) if answers_differ(*pair))
    result = Preferences({}, set(), {})
    for base_row, new_row in differing_pairs:
        if _is_failed(base_row, new_row):
            result.won[new_row.example_id] = float(base_row.status == "error")
            continue
        keys = [_key(base_row, new_row, order) for order in _ORDERS]
        pair_grades = [grade_by_key[key] for grade_by_key in grades for key in keys if key in grade_by_key]
        if not pair_grades or len(pair_grades) < len(grades) * len(keys):
            continue  # a judge has yet to compare them
        item, readable = new_row.example_id, [(g.order, g.value) for g in pair_grades if g.value is not None]
        if len(readable) < len(pair_grades):
            result.unread.add(item)
            result.won[item] = _TIE
        else:
            result.won[item] = fmean(value for _, value in readable)
            result.first[item] = fmean(_value_of_first(order, value) for order, value in readable)
    return result


def _value_of_first(order: str, value: float) -> float:
    return value if order == "first" else 1 - value


def pair_rows(base: Rows, new: Rows) -> Iterator[tuple[SampleResult, SampleResult]]:
    """Yield the rows of the items that both arms answered."""
    base_by_id = {row.example_id: row for row in base}
    return ((base_by_id[row.example_id], row) for row in new if row.example_id in base_by_id)


def answers_differ(old: SampleResult, now: SampleResult) -> bool:
    """Tell whether two answers to an item differ; if both failed, neither is better."""
    failures = [row.status == "error" for row in (old, now)]
    return any(failures) and not all(failures) if any(failures) else old.text != now.text


def map_shown_pairs(base: Rows, new: Rows) -> dict[str, tuple[SampleResult, SampleResult]]:
    """Map the items to show to people to both rows: both answers exist and differ."""
    pairs = ((old, now) for old, now in pair_rows(base, new) if not _is_failed(old, now))
    return {now.example_id: (old, now) for old, now in pairs if answers_differ(old, now)}


def _is_failed(old: SampleResult, now: SampleResult) -> bool:
    return "error" in (old.status, now.status)


def _key(old: SampleResult, now: SampleResult, order: Order) -> str:
    return digest(["pair", now.task, now.example_id, now.prompt, now.text, old.text, order])


Rewards = Mapping[tuple[str, str], Mapping[str, Parts | None]]
"""Maps item and text to the parts that a reward model adds to an answer's scores."""


def rescore_stored(
    session: Session, sets: Iterable[RowSet], ungraded: list[UngradedAnswer] | None = None
) -> list[RowSet]:
    """Score stored answers again, and list what is `ungraded`; return the sets that need a model."""
    incomplete = [rows for rows in sets if not rows.is_there(session.store)]
    stored_identities = store.identities(session.store) if incomplete else ()
    return [rows for rows in incomplete if not _rescore(session, rows, stored_identities, ungraded)]


def score_by_grades(rows: RowSet, results: Rows, ungraded: list[UngradedAnswer]) -> list[SampleResult]:
    """Score answers by the existing grades; unjudged metrics stay, missing grades are added to `ungraded`."""
    if not rows.measured.judged:
        return list(results)
    grades = rows.grades()
    job = rows.job(grades)
    examples = {example.id: example for example in job.examples}
    scored_rows = [
        _row(job, examples[row.example_id], row, grades, {}) if row.example_id in examples else row
        for row in results
    ]
    ungraded += grades.ungraded
    return scored_rows


def _rescore(
    session: Session, rows: RowSet, candidates: Iterable[RowsIdentity], ungraded: list[UngradedAnswer] | None
) -> bool:
    """Score every stored block of the same answers again; return whether the set is then complete."""
    identity = rows.identity
    matching = [r for r in candidates if r.scoring_digest and r != identity and r.answers == identity.answers]
    matching.sort(key=lambda other: other.choice != identity.choice)  # rows with rewards first
    done_blocks = store.list_stored_blocks(session.store, identity, rows.ids)
    grades = rows.grades()
    if matching and identity.scoring_digest:
        job = rows.job(grades)
        for source in matching:
            origins = store.origins(session.store, source.digest)
            for index, block in store.read_blocks(session.store, source, rows.ids).items():
                if index in done_blocks:
                    continue
                rewards: Rewards = {}
                if rows.chooser and source.choice == identity.choice:
                    name = rows.chooser.metric
                    samples = ((row.example_id, s) for row in block for s in row.samples)
                    rewards = {(item, s.text): {name: s.parts.get(name)} for item, s in samples}
                elif rows.chooser:
                    if session.machine.device == "cuda" or session.experiment.engine == "vllm":
                        session.unload()  # a reward model has its own base; a GPU rarely has room for two
                    rewards = _score_rewards(session.machine, rows, rows.chooser, block)
                n_ungraded = len(grades.ungraded)
                examples = job.examples[index * BLOCK : index * BLOCK + len(block)]
                pairs = zip(examples, block, strict=True)
                scored_rows = [_row(job, example, row, grades, rewards) for example, row in pairs]
                if len(grades.ungraded) > n_ungraded:  # a block that lacks a grade
                    continue
                if index in origins:
                    store.keep_origin(session.store, identity.digest, index, origins[index])
                store.append_block(session.store, identity, index, scored_rows)
                done_blocks.add(index)
    if ungraded is not None:
        ungraded += grades.ungraded
    if len(done_blocks) < rows.n_blocks:
        return False
    store.complete_rows(session.store, identity, len(rows.ids))
    return True


def _score_rewards(machine: Machine, rows: RowSet, chooser: Chooser, block: Rows) -> Rewards:
    folder = chooser.weights.folder
    assert folder is not None, "a reward model is trained into a folder"
    step, item_by_id = chooser.step(), {example.id: example for example in rows.measured.examples(rows.split)}
    answers = list(dict.fromkeys((row.example_id, sample.text) for row in block for sample in row.samples))
    prompts, texts = [step(item_by_id[ident]) for ident, _ in answers], [text for _, text in answers]
    model, chat = folder / chooser.weights.kind, rows.measured.task.chat_template
    scores = open_scorer(model, chooser.base, machine, chat)(prompts, texts)
    return {answer: {chooser.metric: (score,)} for answer, score in zip(answers, scores, strict=True)}


def _row(
    job: EvaluationJob, example: Example, row: SampleResult, grades: GradeReader, rewards: Rewards
) -> SampleResult:
    """Score a stored item; an unreadable grade gives its reason, and is an error in the deciding metric."""
    samples = tuple(replace(_output(s), mean_logprob=s.mean_logprob) for s in row.samples)
    output = replace(_output(row), gold_logprob=row.gold_logprob, gold_bytes=row.gold_bytes, samples=samples)

    def score(answer_output: Output) -> AnswerScore:
        result = score_output(job, example, answer_output)
        result = result._replace(parts={**result.parts, **rewards.get((example.id, answer_output.text), {})})
        if unreadable := grades.unreadable.pop(example.id, {}):
            status = "error" if job.task.primary_metric in unreadable else result.status
            result = result._replace(status=status, error="; ".join(unreadable.values()))
        return result

    return replace(row, **answer_fields(job, row.references, output, score))


def _output(record: SampleResult | Sample) -> Output:
    finish_reason: Any = record.finish_reason  # a value of Output's, from which it was copied
    tokens = (record.n_prompt_tokens, record.n_output_tokens)
    return Output(record.text, finish_reason, *tokens, record.compute_s, error=record.error)
