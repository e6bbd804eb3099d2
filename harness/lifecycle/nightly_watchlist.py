"""Watch list of a night: the champion and the named candidates, their pinned references, and the items asked.

A reference is pinned once and stays, so that a slow loss adds up; another champion, or `nightly ack --new-
reference`, pins again. A cluster is evaluated whole. The order of items depends on the items and the seed
alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate, zip_longest
from typing import NamedTuple

import numpy as np

from harness import provenance, store
from harness.analysis.admission import document_of, join_clusters, number_documents
from harness.config import LoadedExperiment
from harness.errors import CandidateFailed, HarnessError, IncompatibleRuns, UserError
from harness.evaluation.candidates import ResolvedCandidate, resolve
from harness.evaluation.row_sets import RowSet
from harness.evaluation.session import MeasuredTask
from harness.experiment.study import load_study
from harness.lifecycle.nightly_state import Reference
from harness.lifecycle.release import candidate_runs
from harness.models.hub import ModelSource
from harness.records import Example, Run, digest
from harness.spec import MEAN_LOGPROB, Recipe
from harness.store import Champion, Store

NEXT = "harness compare, which makes what a night is compared with"


class Watched(NamedTuple):
    """A watched candidate as resolved now, and what a first night pins as its reference.

    `rows` are those of its run, the `reference`, by task and split; `makings` those of its recipe trained
    again.
    """

    name: str
    candidate: ResolvedCandidate
    seed: int
    rows: Mapping[str, str]
    reference: str
    weights: str
    makings: tuple[dict[str, str], ...] = ()


def targets(
    loaded: LoadedExperiment,
    candidates: Mapping[str, ResolvedCandidate],
    sources: Mapping[str, ModelSource],
    references: Mapping[str, Reference],
) -> list[tuple[str, Watched | HarnessError]]:
    """List the watched candidates, the champion first; an error replaces one without a reference.

    A candidate with a pinned reference needs no stored run: its recipe may have changed since.
    """
    experiment, names = loaded.experiment, loaded.experiment.nightly.candidates
    champion = store.read_champion(loaded.folder, experiment.target.name)
    entries: list[tuple[str, Watched | HarnessError]] = []

    def watch(label: str, candidate: ResolvedCandidate, source: Champion | Run, runs: Sequence[Run]) -> None:
        """Add a candidate, with the test rows of other trainings that cover all test rows of `source`."""
        test_keys = [key for key in source.rows if key.endswith("/test")]
        others = [
            r for r in runs if r.weights_digest != source.weights_digest and r.rows.keys() >= {*test_keys}
        ]
        makings = {r.weights_digest: {key: r.rows[key] for key in test_keys} for r in others}
        reference = (source.seed, source.rows, source.run_id, source.weights_digest)
        entries.append((label, Watched(label, candidate, *reference, tuple(makings.values()))))

    if champion is not None:
        name, recipe = champion.candidate, Recipe.model_validate(champion.recipe)
        candidate = candidates.get(name) or resolve(name, recipe, experiment, sources, candidates)
        runs: list[Run] = []  # runs of the champion's recipe, unless the file has another recipe now
        if experiment.candidates.get(name) == recipe:
            with suppress(HarnessError):
                runs = candidate_runs(load_study(loaded), name)
        watch(f"champion {name}", candidate, champion, runs)
    for name in names:
        pinned, candidate = references.get(name), candidates[name]
        if pinned is not None:
            reference = (pinned.seed, pinned.rows, pinned.id, pinned.weights)
            entries.append((name, Watched(name, candidate, *reference)))
            continue
        try:
            runs = candidate_runs(load_study(loaded), name)
        except HarnessError as error:
            entries.append((name, error))
            continue
        watch(name, candidate, runs[0], runs)
    if not entries:
        found = "no champion and no nightly.candidates"
        step = "harness promote RUN, or nightly: {candidates: [lora]}"
        raise UserError("nightly", found, "a candidate to watch", step)
    for index, (label, target) in enumerate(entries):
        sampling = target.candidate.recipe.sampling if isinstance(target, Watched) else None
        if sampling is not None and sampling.by not in (None, MEAN_LOGPROB):
            problem = f"the best answer by {sampling.by}, and in nights no judge and no reward model chooses"
            entries[index] = label, CandidateFailed(problem, f"choose: majority, or by: {MEAN_LOGPROB}")
    return entries


def find_reference(at: Store, target: Watched, before: Reference | None) -> Reference | None:
    """Return a candidate's pinned reference; None if there is none yet, or another champion replaces it."""
    if before is None or (target.name.startswith("champion ") and before.id != target.reference):
        return None
    for rows in (before.rows, before.base, *before.makings):
        _refuse_missing(at, rows)
    return before


def pin_reference(
    at: Store, targets: Sequence[MeasuredTask], data: str, target: Watched, base_sets: Iterable[RowSet]
) -> Reference:
    """Return a candidate's new reference on the targets, with a digest of their data, and its base's rows."""
    base = {rows.name: rows.identity.digest for rows in base_sets}
    stored_base = {key: rows for key, rows in base.items() if at.parquet(rows).exists()}
    test_rows = {key: rows for key, rows in target.rows.items() if key.endswith("/test")}
    for rows in (test_rows, *target.makings):
        _refuse_missing(at, rows)
    target_key, *more_keys = (f"{m.task.name}/test" for m in targets)
    if lacking := sorted(base.keys() & test_rows.keys() - stored_base.keys() - {target_key, *more_keys}):
        where, found = str(at.folder), f"no rows of the base on {', '.join(lacking)}"
        raise IncompatibleRuns(where, found, f"them with {target.reference}", NEXT)
    origins = store.origins(at, test_rows[target_key])
    known = [key for key in (target_key, *more_keys) if key in test_rows]
    return Reference(
        id=target.reference,
        rows=test_rows,
        base=stored_base,
        weights=target.weights,
        promptings={k: store.read_identity(at, test_rows[k]).prompting_digest for k in known},
        data=data,
        environment=next(iter(origins.values())).environment if origins else "",
        seed=target.seed,
        makings=target.makings,
    )


def _refuse_missing(at: Store, rows: Mapping[str, str]) -> None:
    if lost := sorted(key for key, rows_digest in rows.items() if not at.parquet(rows_digest).exists()):
        found = f"no rows of the reference on {', '.join(lost)}"
        step = f"{NEXT}, then harness nightly ack --new-reference"
        raise IncompatibleRuns(str(at.folder), found, "what it was pinned with", step)


def describe_tested(
    at: Store,
    reference: Reference,
    weights: str,
    promptings: Mapping[str, str],
    environment: str,
    data: str,
    served: str = "",
) -> tuple[str, ...]:
    """Describe what differs from the reference; `served` describes how an endpoint answers.

    `weights`, `environment` and `data` are digests.
    """
    same_data, differences = reference.data == data, [served] if served else []
    if weights != reference.weights:
        differences.append("the recipe trained again" + ("" if same_data else " on new data"))
    changed = [key for key, prompting in promptings.items() if prompting != reference.promptings.get(key)]
    if changed:
        tasks = ", ".join(key.removesuffix("/test") for key in changed)
        on_data = "" if same_data else ", on new data"
        differences.append(f"another prompting, other shots or passages on {tasks}{on_data}")
    if environment != reference.environment and reference.environment:
        keys = (reference.environment, environment)
        changes = provenance.changes(*(store.read_environment(at, key) for key in keys))
        differences.append(f"upgraded libraries or another machine ({changes})")
    differences.append("the harness" if differences else "only the harness: the weights answer as before")
    return tuple(differences)


Item = tuple[str, str]  # task, example id
Cluster = tuple[Item, ...]


class ItemPool(NamedTuple):
    """All items of a series by cluster: those evaluated every night, and those that rotate."""

    anchors: tuple[Cluster, ...]
    rest: tuple[Cluster, ...]


class NightClusters(NamedTuple):
    """Items of a series for one night; `taken` clusters were evaluated by its end, `left` never yet."""

    anchors: tuple[Cluster, ...]
    fresh: tuple[Cluster, ...]
    taken: int
    left: int


def build_pool(tasks: Mapping[str, Sequence[Example]], n_anchors: int) -> ItemPool:
    """Order the clusters of tasks, and set aside anchors with at least `n_anchors` items."""
    cluster_of, documents, by_task = dict[Item, str](), list[tuple[str, str]](), list[list[Cluster]]()
    for task, examples in sorted(tasks.items()):
        items_of, document_by_id = dict[str, list[Item]](), dict[str, str]()
        for example in examples:
            items_of.setdefault(example.cluster or example.id, []).append((task, example.id))
            cluster_of[task, example.id] = example.cluster or f"{task}/{example.id}"
            prompt = digest([example.messages, example.choices]) if example.messages else ""
            if document := document_of(example.id, prompt):
                document_by_id[example.id] = document
        numbered = number_documents(document_by_id)
        documents += [(document, cluster_of[task, item]) for item, document in numbered.items()]
        names = sorted(items_of)
        shuffled = np.random.default_rng(int(digest([task, 0]), 16)).permutation(len(names))
        by_task.append([tuple(sorted(items_of[names[i]])) for i in shuffled])
    # Clusters that share a name or a document are one, in the place of the first.
    joined, pool = join_clusters(documents), dict[str, Cluster]()
    for cluster in (cluster for turn in zip_longest(*by_task) for cluster in turn if cluster):
        name = cluster_of[cluster[0]]
        key = joined.get(name, name)
        pool[key] = (*pool.get(key, ()), *cluster)
    ordered = list(pool.values())
    n = _count_clusters(ordered, n_anchors)
    return ItemPool(tuple(ordered[:n]), tuple(ordered[n:]))


def choose_next_items(pool: ItemPool, n_taken: int, n_items: int) -> NightClusters:
    """Choose the next clusters with at least `n_items` items, or all clusters if they have fewer."""
    if not pool.rest:
        return NightClusters(pool.anchors, (), n_taken, 0)
    start = n_taken % len(pool.rest)
    turned = [*pool.rest[start:], *pool.rest[:start]]
    fresh = turned[: _count_clusters(turned, n_items)]
    after = n_taken + len(fresh)
    return NightClusters(pool.anchors, tuple(fresh), after, max(len(pool.rest) - after, 0))


def ids_by_task(clusters: Iterable[Cluster]) -> dict[str, list[str]]:
    """Map tasks to the ids of their items in the given clusters, in order."""
    ids: dict[str, list[str]] = {}
    for cluster in clusters:
        for task, example_id in cluster:
            ids.setdefault(task, []).append(example_id)
    return ids


def _count_clusters(clusters: Sequence[Cluster], n_items: int) -> int:
    n_so_far = accumulate(map(len, clusters), initial=0)
    return next((n for n, total in enumerate(n_so_far) if total >= n_items), len(clusters))
