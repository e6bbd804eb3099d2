"""K-fold cross-validation of a candidate on the target: a model a fold, their answers in one row set.

Invariant: no item is answered by weights or with shots that were made with it, or with its cluster; what does
not depend on training rows answers all items at once. The weights of a run are those made of all rows, on
which suites are evaluated and which are shipped; of its test rows it has those of the folds alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from harness import plugins, store
from harness.errors import Problem, UserError
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.judging_stage import answer_and_score
from harness.evaluation.rescoring import rescore_stored
from harness.evaluation.row_sets import RowSet, is_there, target_sets
from harness.evaluation.session import Session
from harness.experiment.weights.candidate_weights import ensure_weights, find_stored_weights, stands_on
from harness.records import BLOCK, Origin, digest
from harness.training import Weights


class _FoldPart(NamedTuple):
    """Test rows of one fold with the weights that answer them, and the session in which these were made."""

    session: Session
    weights: Weights
    rows: RowSet


def is_cross_validated(session: Session, candidate: ResolvedCandidate) -> bool:
    """Tell whether a candidate answers otherwise in each fold: by its weights or by its prompts."""
    trained = any(plugins.method(recipe.method).draws_from for recipe in candidate.lineage.values())
    prompted = bool(set(candidate.recipe.prompting) - {"zero_shot"})
    return bool(session.folds) and (trained or prompted)


def refuse_folds(session: Session, what: str, why: str) -> None:
    """Refuse what has no meaning, or is not offered, where the target is tested in folds."""
    if session.folds:
        found = f"folds: {len(session.folds)}, {why}"
        step = "a file of test rows (data.test), or one that is split once (data.all without folds)"
        raise UserError(Problem(what, found, "test rows that nothing shipped was trained on", step))


def fold_sessions(session: Session) -> list[Session]:
    """Return a session for each fold, which trains on the rows of the others and tests on its own."""
    return [
        replace(
            session,
            target=fold.target._replace(judged=session.target.judged),
            training=fold.training,
            folds=(),
        )
        for fold in session.folds
        if fold.target.size("test")  # of a smoke run some fold may have no item
    ]


def answer_folds(session: Session, candidate: ResolvedCandidate, weights: Weights, seed: int) -> Weights:
    """Make and ask the model of every fold where that is not done; returns weights that stand on these."""
    if not is_cross_validated(session, candidate):
        return weights
    parts = []
    for number, fold in enumerate(fold_sessions(session), start=1):
        part = _part(fold, candidate, ensure_weights(fold, candidate, seed), seed)
        name = f"{candidate.name}, fold {number}"
        answer_and_score(fold, part.weights, [part.rows], name, candidate.base)
        parts.append(part)
    _join(session, _join_fold_sets(target_sets(session, candidate.recipe, weights, seed)[1], parts), parts)
    behind = weights.training.stands_on | stands_on(*(part.weights for part in parts))
    return weights._replace(training=replace(weights.training, stands_on=behind))


def sets_of_target(
    session: Session, candidate: ResolvedCandidate, weights: Weights, seed: int
) -> list[RowSet]:
    """List validation and test of the target; in folds test is what the models of the folds answer.

    Where one of these was never made, test is a set that nobody has.
    """
    validation, test = target_sets(session, candidate.recipe, weights, seed)
    if not is_cross_validated(session, candidate):
        return [validation, test]
    return [validation, _join_fold_sets(test, _find_stored_parts(session, candidate, seed))]


def has_folds(session: Session, candidate: ResolvedCandidate, test: RowSet) -> bool:
    """Tell whether the fold of each test row is kept; true where one model answers them all."""
    return not is_cross_validated(session, candidate) or bool(
        store.read_folds(session.store, test.identity.digest)
    )


def rescore_folds(
    session: Session, candidate: ResolvedCandidate, weights: Weights, seed: int
) -> list[RowSet]:
    """Score the stored answers of the folds as metrics are now; returns the sets that need a model."""
    if not is_cross_validated(session, candidate):
        return []
    parts = _find_stored_parts(session, candidate, seed)
    if lacking := [rows for part in parts for rows in rescore_stored(part.session, [part.rows])]:
        return lacking
    joined = _join_fold_sets(target_sets(session, candidate.recipe, weights, seed)[1], parts)
    if len(parts) < len(fold_sessions(session)):
        return [joined]
    _join(session, joined, parts)
    return []


def _part(fold: Session, candidate: ResolvedCandidate, weights: Weights, seed: int) -> _FoldPart:
    return _FoldPart(fold, weights, target_sets(fold, candidate.recipe, weights, seed)[1])


def _find_stored_parts(session: Session, candidate: ResolvedCandidate, seed: int) -> list[_FoldPart]:
    """Find the folds whose weights were made before."""
    made = ((fold, find_stored_weights(fold, candidate, seed)) for fold in fold_sessions(session))
    return [_part(fold, candidate, weights, seed) for fold, weights in made if weights]


def _join_fold_sets(test: RowSet, parts: Sequence[_FoldPart]) -> RowSet:
    """Name the rows that the folds' models answer together, as if they were one that answers all of test."""
    who = digest(["folds", *(part.rows.identity.answers.digest for part in parts)])
    return test._replace(identity=replace(test.identity, weights_digest=who))


def _join(session: Session, joined: RowSet, parts: Sequence[_FoldPart]) -> None:
    """Write the folds' rows as one set, in the order of test, unless that is done."""
    at, identity = session.store, joined.identity
    if is_there(session, joined) and store.read_folds(at, identity.digest):
        return
    found, folds, origins = {}, {}, list[Origin]()
    for number, part in enumerate(parts, start=1):
        name = part.rows.identity.digest
        drawn = store.read_drawn(at, name) if identity.decoding else {}
        for row in store.read_rows(at, name, len(part.rows.ids)):
            found[row.example_id] = replace(row, samples=drawn.get(row.example_id, ()))
            folds[row.example_id] = number
        origins += store.origins(at, name).values()
    rows = [replace(found[item], position=place) for place, item in enumerate(joined.ids)]
    store.keep_folds(at, identity.digest, folds)
    for index in range(joined.n_blocks):
        if origins:
            disturbed = any(origin.contended for origin in origins)
            store.keep_origin(at, identity.digest, index, origins[-1]._replace(contended=disturbed))
        store.append_block(at, identity, index, rows[index * BLOCK : (index + 1) * BLOCK])
    store.complete_rows(at, identity, len(rows))
