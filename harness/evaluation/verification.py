"""Verification of weights before they are exported or served: each file is hashed anew.

Invariant: a checksum that was remembered counts only if it is the file's own today. Of a champion each file
must be the one that was promoted.
"""

from collections.abc import Iterator

from harness import store
from harness.errors import CandidateFailed, Problem, gather, refuse
from harness.evaluation.candidates import refuse_damaged
from harness.evaluation.session import Session
from harness.models.hub import ModelSource, refuse_changed_files
from harness.records import Run
from harness.training import Weights

_AGAIN = "harness compare makes the weights again where their folder was deleted"


def verify_weights(session: Session, weights: Weights, run: Run) -> None:
    """Hash each file of a run's weights and of their base, and compare with what the run answered with.

    Raises:
        UserError: names each file that changed, is missing or was added, or the weights are not the run's.
    """
    source = weights.source or session.source
    problems: list[Problem] = []
    with gather(problems):
        refuse_changed_files(source)
    refuse([*problems, *_find_unlike_run(weights, source, run), *_find_unlike_promoted(session.store, run)])


def _find_unlike_run(weights: Weights, source: ModelSource, run: Run) -> Iterator[Problem]:
    """Yield that trained weights are damaged, or that weights or base are not those of the run."""
    try:
        refuse_damaged(weights)
    except CandidateFailed as error:
        yield Problem(str(weights.folder), error.reason, "the weights that were trained", error.knob)
    if weights.digest != run.weights_digest:
        found, expected = f"weights with the digest {weights.digest}", f"{run.weights_digest}, the run's"
        yield Problem(run.run_id, found, expected, _AGAIN)
    if source.weights_digest not in (run.base_digest, run.served_digest, run.weights_digest):
        found, expected = f"a base with the digest {source.weights_digest}", f"{run.base_digest}, the run's"
        yield Problem(run.run_id, found, expected, "name the base_model that it was trained on")


def _find_unlike_promoted(at: store.Store, run: Run) -> Iterator[Problem]:
    """Yield each file of a kept champion's weights that is not as it was promoted."""
    for champion in store.kept_champions(at.folder.parent):
        if champion.run_id == run.run_id and champion.files:
            now = store.hash_weights(at, champion.fit_key)
            for name in sorted({*champion.files, *now}):
                if now.get(name) != champion.files.get(name):
                    change = "missing" if name not in now else "changed" if name in champion.files else "new"
                    where = str(at.weights(champion.fit_key) / name)
                    found = f"a file that is {change} since its promotion"
                    yield Problem(where, found, "the files that were promoted", _AGAIN)
