"""Re-scoring of stored answers: with other metrics, with new grades, or with the rewards of a reward model.

Invariant: a reward depends only on the item, the text and the reward model; stored rewards are reused. No
candidate answers anything; re-scored rows equal those of a new evaluation, because they differ from the
stored rows only in their scoring.
Source: the best of n by a reward model, Stiennon et al. 2020, arXiv:2009.01325
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness import store
from harness.evaluation import AnswerScore, EvaluationJob, answer_fields, score_output
from harness.evaluation.judges import GradeReader, UngradedAnswer
from harness.evaluation.row_sets import Chooser, RowSet
from harness.evaluation.session import Session
from harness.metrics import Parts
from harness.records import BLOCK, Example, Output, RowsIdentity, Sample, SampleResult
from harness.training import open_scorer

Rewards = Mapping[tuple[str, str], Mapping[str, Parts | None]]
"""Maps item and text to the parts that a reward model adds to an answer's scores."""


def rescore_stored(
    session: Session, sets: Iterable[RowSet], ungraded: list[UngradedAnswer] | None = None
) -> list[RowSet]:
    """Score stored answers again with other metrics; return the sets that need a model.

    Answers that a judge has yet to grade are added to `ungraded`; no judge is asked here.
    """
    incomplete = [rows for rows in sets if not store.has_rows(session.store, rows.identity, rows.ids)]
    if not incomplete:
        return []
    stored_identities = store.identities(session.store)
    return [rows for rows in incomplete if not _rescore(session, rows, stored_identities, ungraded)]


def score_by_grades(
    rows: RowSet, answered: Sequence[SampleResult], ungraded: list[UngradedAnswer]
) -> list[SampleResult]:
    """Score answers to some of a set's items with the existing grades; unjudged metrics stay as they are.

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
    """Score every stored block of the same answers again; return whether the set is then complete."""
    wanted = rows.identity
    same = [r for r in known if r.scoring_digest and r != wanted and r.answers == wanted.answers]
    same.sort(key=lambda identity: identity.choice != wanted.choice)  # rows with rewards first
    done = store.list_stored_blocks(session.store, wanted, rows.ids)
    grades = rows.grades()
    if same and wanted.scoring_digest:
        job = rows.job(grades)
        for other in same:
            origins = store.origins(session.store, other.digest)
            for index, block in store.read_blocks(session.store, other, rows.ids).items():
                if index in done:
                    continue
                rewards: Rewards = {}
                if rows.chooser and other.choice == wanted.choice:
                    name = rows.chooser.metric
                    rewards = {
                        (row.example_id, s.text): {name: s.parts.get(name)}
                        for row in block
                        for s in row.samples
                    }
                elif rows.chooser:
                    rewards = _score_rewards(session, rows, rows.chooser, block)
                n_ungraded = len(grades.ungraded)
                examples = job.examples[index * BLOCK : index * BLOCK + len(block)]
                scored = [
                    _row(job, example, row, grades, rewards)
                    for example, row in zip(examples, block, strict=True)
                ]
                if len(grades.ungraded) > n_ungraded:  # a block that lacks a grade
                    continue
                if index in origins:
                    store.keep_origin(session.store, wanted.digest, index, origins[index])
                store.append_block(session.store, wanted, index, scored)
                done.add(index)
    if ungraded is not None:
        ungraded += grades.ungraded
    if len(done) < rows.n_blocks:
        return False
    store.complete_rows(session.store, wanted, len(rows.ids))
    return True


def _score_rewards(
    session: Session, rows: RowSet, chooser: Chooser, block: Sequence[SampleResult]
) -> Rewards:
    """Score a block's answers with the reward model, each item prompted as in its training.

    Raises:
        CandidateFailed: memory does not suffice.
    """
    folder = chooser.weights.folder
    assert folder is not None, "a reward model is trained into a folder"
    if session.machine.device == "cuda" or session.experiment.engine == "vllm":
        session.unload()  # a reward model has its own base, and a GPU rarely has room for two
    step, plain = chooser.step(), {example.id: example for example in rows.measured.examples(rows.split)}
    answers = list(dict.fromkeys((row.example_id, sample.text) for row in block for sample in row.samples))
    prompted, texts = [step(plain[ident]) for ident, _ in answers], [text for _, text in answers]
    model, chat = folder / chooser.weights.kind, rows.measured.task.chat_template
    scores = open_scorer(model, chooser.base, session.machine, chat)(prompted, texts)
    return {answer: {chooser.metric: (score,)} for answer, score in zip(answers, scores, strict=True)}


def _row(
    job: EvaluationJob, example: Example, row: SampleResult, grades: GradeReader, rewards: Rewards
) -> SampleResult:
    """Score a stored item; an unreadable grade gives its reason, and is an error in the deciding metric."""
    samples = tuple(replace(_output(s), mean_logprob=s.mean_logprob) for s in row.samples)
    output = replace(_output(row), gold_logprob=row.gold_logprob, gold_bytes=row.gold_bytes, samples=samples)

    def score(answer_output: Output) -> AnswerScore:
        scored = score_output(job, example, answer_output)
        scored = scored._replace(parts={**scored.parts, **rewards.get((example.id, answer_output.text), {})})
        if unreadable := grades.unreadable.pop(example.id, {}):
            status = "error" if job.task.primary_metric in unreadable else scored.status
            scored = scored._replace(status=status, error="; ".join(unreadable.values()))
        return scored

    return replace(row, **answer_fields(job, row.references, output, score))


def _output(stored: SampleResult | Sample) -> Output:
    """Return a stored answer as it was before scoring."""
    ended: Any = stored.finish_reason  # a value of Output's, from which it was copied
    tokens = (stored.n_prompt_tokens, stored.n_output_tokens)
    return Output(stored.text, ended, *tokens, stored.compute_s, error=stored.error)
