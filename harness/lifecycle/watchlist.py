"""Watch list: the champion and the named candidates, each with its pinned reference.

Invariant: a reference is pinned once and stays, so that a slow loss adds up; another champion, or
`nightly ack --new-reference`, pins again.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from harness import provenance, store
from harness.config import LoadedExperiment
from harness.errors import CandidateFailed, HarnessError, IncompatibleRuns, Problem, UserError
from harness.evaluation.candidates import ResolvedCandidate, base_weights
from harness.evaluation.row_sets import RowSet, list_further_sets, suite_sets, target_sets
from harness.evaluation.session import Session
from harness.experiment import load_study
from harness.lifecycle.nightly_state import Reference
from harness.lifecycle.release import candidate_runs
from harness.models.hub import ModelSource
from harness.models.openai_api import Settings
from harness.records import Run, digest, drop_defaults
from harness.spec import MEAN_LOGPROB, Recipe
from harness.store import Store
from harness.training import Weights

NEXT = "harness compare, which makes what a night is compared with"


class Target(NamedTuple):
    """A watched candidate: its label, its recipe as resolved now, its seed, and where its rows are from.

    `makings` holds the rows of the same recipe with other seeds.
    """

    name: str
    candidate: ResolvedCandidate
    seed: int
    rows: Mapping[str, str]
    reference: str
    weights: str
    makings: tuple[dict[str, str], ...] = ()


def targets(
    loaded: LoadedExperiment, session: Session, references: Mapping[str, Reference]
) -> list[tuple[str, Target | HarnessError]]:
    """List who is watched, the champion first; what has nothing to be compared with is its error.

    Of whom a reference is pinned no stored run is needed: the recipe may have changed since.

    Raises:
        UserError: there is no candidate to watch.
    """
    known, named = session.candidates, session.experiment.nightly.candidates
    champion = store.read_champion(loaded.folder, session.experiment.target.name)
    out: list[tuple[str, Target | HarnessError]] = []
    if champion is not None:
        name, recipe = champion.candidate, Recipe.model_validate(champion.recipe)
        candidate = known.get(name) or session.resolve(name, recipe)
        runs: list[Run] = []  # of its recipe, unless the file has another one by now
        if loaded.experiment.candidates.get(name) == recipe:
            with suppress(HarnessError):
                runs = candidate_runs(load_study(loaded), name)
        label, run_id, weights = f"champion {name}", champion.run_id, champion.weights_digest
        others = _list_other_makings(runs, champion.rows, weights)
        one = Target(label, candidate, champion.seed, champion.rows, run_id, weights, others)
        out.append((label, one))
    out += [(name, _find_target(loaded, session, name, references.get(name))) for name in named]
    if not out:
        found = "no champion and no nightly.candidates"
        step = "harness promote RUN, or nightly: {candidates: [lora]}"
        raise UserError(Problem("nightly", found, "a candidate to watch", step))
    for place, (label, target) in enumerate(out):
        drawn = target.candidate.recipe.sampling if isinstance(target, Target) else None
        if drawn is not None and drawn.by not in (None, MEAN_LOGPROB):
            said = f"the best answer by {drawn.by}, and in nights no judge and no reward model chooses"
            out[place] = label, CandidateFailed(said, f"choose: majority, or by: {MEAN_LOGPROB}")
    return out


def _find_target(
    loaded: LoadedExperiment, session: Session, name: str, known: Reference | None
) -> Target | HarnessError:
    candidate = session.candidates[name]
    if known is not None:
        return Target(name, candidate, known.seed, known.rows, known.id, known.weights)
    try:
        runs = candidate_runs(load_study(loaded), name)
    except HarnessError as error:
        return error
    found = runs[0]
    others = _list_other_makings(runs, found.rows, found.weights_digest)
    return Target(name, candidate, found.seed, found.rows, found.run_id, found.weights_digest, others)


def _list_other_makings(
    runs: Sequence[Run], rows: Mapping[str, str], weights: str
) -> tuple[dict[str, str], ...]:
    """Return the test rows of other trainings of a recipe, on all that the reference holds rows of."""
    wanted = [key for key in rows if key.endswith("/test")]
    others = {
        run.weights_digest: {key: run.rows[key] for key in wanted}
        for run in runs
        if run.weights_digest != weights and all(key in run.rows for key in wanted)
    }
    return tuple(others.values())


def pin_reference(session: Session, target: Target, before: Reference | None) -> Reference:
    """Return what a candidate is compared with: as pinned before, unless the champion is another one.

    Raises:
        IncompatibleRuns: rows of the candidate or of its base are missing.
    """
    if before is not None and (not target.name.startswith("champion ") or before.id == target.reference):
        for rows in (before.rows, before.base, *before.makings):
            _refuse_missing(session.store, rows)
        return before
    sets = base_sets(session, target.candidate.base)
    base = {f"{s.measured.task.name}/test": s.identity.digest for s in sets}
    there = {key: rows for key, rows in base.items() if session.store.parquet(rows).exists()}
    wanted = {key: rows for key, rows in target.rows.items() if key.endswith("/test")}
    for rows in (wanted, *target.makings):
        _refuse_missing(session.store, rows)
    target_key, *more_keys = (f"{m.task.name}/test" for m in (session.target, *session.more_targets))
    if lacking := sorted(base.keys() & wanted.keys() - there.keys() - {target_key, *more_keys}):
        raise IncompatibleRuns(
            f"{session.store.folder}: found no rows of the base on {', '.join(lacking)}; expected them "
            f"with {target.reference}; next: {NEXT}"
        )
    origins = store.origins(session.store, wanted[target_key])
    return Reference(
        id=target.reference,
        rows=wanted,
        base=there,
        weights=target.weights,
        prompting=store.read_identity(session.store, wanted[target_key]).prompting_digest,
        data=data_digest(session),
        environment=next(iter(origins.values())).environment if origins else "",
        seed=target.seed,
        makings=target.makings,
        more_promptings={
            key: store.read_identity(session.store, wanted[key]).prompting_digest
            for key in more_keys
            if key in wanted
        },
    )


def _refuse_missing(at: Store, rows: Mapping[str, str]) -> None:
    if lost := sorted(key for key, one in rows.items() if not at.parquet(one).exists()):
        raise IncompatibleRuns(
            f"{at.folder}: found no rows of the reference on {', '.join(lost)}; expected what it was pinned "
            f"with; next: {NEXT}, then harness nightly ack --new-reference"
        )


def base_sets(session: Session, source: ModelSource) -> list[RowSet]:
    """List what the control arm can be evaluated on: the suites, and all targets by the plain prompt."""
    weights = base_weights(source)
    return [*_test_sets(session, Recipe(), weights, 0), *suite_sets(session, weights)]


def list_own_sets(session: Session, target: Target, weights: Weights) -> list[RowSet]:
    """List what a candidate is evaluated on: the targets, and the suites where the weights are its own."""
    own = weights.is_language_model and weights.digest != target.candidate.base.weights_digest
    sets = _test_sets(session, target.candidate.recipe, weights, target.seed)
    return [*sets, *(suite_sets(session, weights) if own else [])]


def _test_sets(session: Session, recipe: Recipe, weights: Weights, seed: int) -> list[RowSet]:
    further = list_further_sets(session, recipe, weights, seed)
    tests = sorted((rows for rows in further if rows.split == "test"), key=lambda rows: rows.name)
    return [target_sets(session, recipe, weights, seed)[1], *tests]


def data_digest(session: Session) -> str:
    """Digest the rows that are trained on and retrieved from."""
    versions = session.target.versions
    rows = [versions["train"], versions["validation"], [list(d) for d in session.target.items.documents]]
    own = [list(map(drop_defaults, (*m.items.train, *m.items.pairs))) for m in session.training.values()]
    return digest([*rows, *([digest(own)] if own else [])])


def describe_tested(
    session: Session,
    recipe: Recipe,
    reference: Reference,
    weights: Weights,
    prompting: str,
    environment: str,
    served: str = "",
    more: Mapping[str, str] = {},
) -> tuple[str, ...]:
    """Say in words what is another than in the reference; the harness itself always is tested.

    `served` says how an endpoint answers, whose weights cannot be seen. `more` maps more targets to the
    prompting of tonight.
    """
    same_data = reference.data == data_digest(session)
    said = [served] if served else []
    if weights.digest != reference.weights:
        said.append("the recipe trained again" + ("" if same_data else " on new data"))
    if prompting != reference.prompting:
        drawn = {"rag": "a rebuilt retrieval index", "few_shot": "shots chosen again"}
        named = [how for name, how in drawn.items() if name in recipe.prompting] or ["a prompting"]
        said.append("another prompting" if same_data else f"{' and '.join(named)} on new data")
    then = reference.more_promptings
    if changed := [key for key, digests in more.items() if digests != then.get(key, digests)]:
        on = ", ".join(key.removesuffix("/test") for key in changed)
        said.append(f"another prompting, other shots or passages on {on}")
    if environment != reference.environment and reference.environment:
        keys = (reference.environment, environment)
        changes = provenance.changes(*(store.read_environment(session.store, key) for key in keys))
        said.append(f"upgraded libraries or another machine ({changes})")
    said.append("the harness" if said else "only the harness: the weights answer as before")
    return tuple(said)


def describe_endpoint(candidate: ResolvedCandidate, since: str, night: str) -> str:
    """Name an endpoint, and since when it has answered its anchors as tonight."""
    settings = Settings(**candidate.source.params)
    as_when = f"as since {since}" if since else "as in the reference"
    how = "otherwise than before" if since == night else as_when
    return f"the endpoint ({settings.name}), which answers its anchors {how}"
