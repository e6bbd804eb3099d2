"""Re-scoring of stored answers: by other metrics, by the grades that there are by now, or by other rewards.

Invariant: no candidate answers anything; rows that are re-scored equal those of a new evaluation, because
nothing but their scoring differs from the rows they are made of.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from harness import store
from harness.evaluation import AnswerScore, EvaluationJob, answer_fields, score_output
from harness.evaluation.judges.grade_reading import GradeReader, UngradedAnswer
from harness.evaluation.rows.answer_rewards import Rewards, read_stored_rewards, score_rewards
from harness.evaluation.rows.row_sets import RowSet
from harness.evaluation.session import Session
from harness.records import BLOCK, Example, Output, RowsIdentity, Sample, SampleResult


def rescore_stored(
    session: Session, sets: Iterable[RowSet], ungraded: list[UngradedAnswer] | None = None
) -> list[RowSet]:
    """Score again what was answered before under other metrics; returns the sets that need a model.

    Answers that a judge has yet to grade are added to `ungraded`; no judge is asked here.
    """
    absent = [rows for rows in sets if not store.has_rows(session.store, rows.identity, rows.ids)]
    if not absent:
        return []
    known = store.identities(session.store)
    return [rows for rows in absent if not _rescore(session, rows, known, ungraded)]


def score_by_grades(
    rows: RowSet, answered: Sequence[SampleResult], ungraded: list[UngradedAnswer]
) -> list[SampleResult]:
    """Score answers to some of a set's items by the grades there are; what no judge scores stays as it is.

    Answers that a judge has yet to grade are added to `ungraded`.
    """
    if not rows.measured.judged:
        return list(answered)
    grades = rows.grades()
    job = rows.job(grades)
    examples = {example.id: example for example in job.examples}
    scored = [
        _row(job, examples[row.example_id], row, grades, {}) if row.example_id in examples else row
        for row in answered
    ]
    ungraded += grades.ungraded
    return scored


def _rescore(
    session: Session, rows: RowSet, known: Iterable[RowsIdentity], ungraded: list[UngradedAnswer] | None
) -> bool:
    """Score again every stored block of the same answers; says whether the set is then complete."""
    wanted = rows.identity
    same = [one for one in known if one.scoring_digest and one != wanted and one.answers == wanted.answers]
    same.sort(key=lambda one: one.choice != wanted.choice)  # those first that hold the rewards
    done = store.list_stored_blocks(session.store, wanted, rows.ids)
    grades = rows.grades()
    if same and wanted.scoring_digest:
        job = rows.job(grades)
        for other in same:
            _rescore_blocks(session, rows, job, grades, other, done)
    if ungraded is not None:
        ungraded += grades.ungraded
    if len(done) < rows.n_blocks:
        return False
    store.complete_rows(session.store, wanted, len(rows.ids))
    return True


def _rescore_blocks(
    session: Session,
    rows: RowSet,
    job: EvaluationJob,
    grades: GradeReader,
    other: RowsIdentity,
    done: set[int],
) -> None:
    """Score again the stored blocks of other rows that are not `done`, but those that lack a grade."""
    wanted, came_from = rows.identity, store.origins(session.store, other.digest)
    for index, block in store.read_blocks(session.store, other, rows.ids).items():
        if index in done:
            continue
        n_ungraded = len(grades.ungraded)
        same_choice = other.choice == wanted.choice
        rewards = (
            read_stored_rewards(rows.chooser, block) if same_choice else _score_rewards(session, rows, block)
        )
        examples = job.examples[index * BLOCK : index * BLOCK + len(block)]
        scored = [
            _row(job, example, row, grades, rewards) for example, row in zip(examples, block, strict=True)
        ]
        if len(grades.ungraded) > n_ungraded:
            continue
        if index in came_from:
            store.keep_origin(session.store, wanted.digest, index, came_from[index])
        store.append_block(session.store, wanted, index, scored)
        done.add(index)


def _score_rewards(session: Session, rows: RowSet, block: Sequence[SampleResult]) -> Rewards:
    """Ask the reward model that chooses, if one does, about a block's answers."""
    m = rows.measured
    return score_rewards(session, rows.chooser, block, m.examples(rows.split), chat=m.task.chat_template)


def _row(
    job: EvaluationJob, example: Example, row: SampleResult, grades: GradeReader, rewards: Rewards
) -> SampleResult:
    """Score what is stored of an item; an unreadable grade says why, and is an error where it decides."""
    samples = tuple(replace(_output(one), mean_logprob=one.mean_logprob) for one in row.samples)
    output = replace(_output(row), gold_logprob=row.gold_logprob, gold_bytes=row.gold_bytes, samples=samples)

    def score(one: Output) -> AnswerScore:
        scored = score_output(job, example, one)
        scored = scored._replace(parts={**scored.parts, **rewards.get((example.id, one.text), {})})
        if unreadable := grades.unreadable.pop(example.id, {}):
            status = "error" if job.task.primary_metric in unreadable else scored.status
            scored = scored._replace(status=status, error="; ".join(unreadable.values()))
        return scored

    return replace(row, **answer_fields(job, row.references, output, score))


def _output(stored: SampleResult | Sample) -> Output:
    """Return what was answered, as it was before it was scored."""
    ended: Any = stored.finish_reason  # one of what an output holds, from where it was copied
    tokens = (stored.n_prompt_tokens, stored.n_output_tokens)
    return Output(stored.text, ended, *tokens, stored.compute_s, error=stored.error)
