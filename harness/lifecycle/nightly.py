"""One nightly run: the base and all watched candidates are evaluated again and compared with references.

Invariant: one process at a time; a failed candidate does not end the night; repeating a night evaluates only
what is missing. Answers are written before the next task is evaluated, and before a judge sees them. An alarm
is raised once and stays until it is acknowledged; an unchanged candidate raises one with a probability of at
most `nightly.alpha`, however many nights are evaluated.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path

from harness import config, provenance, store
from harness.analysis.answers import add_samples
from harness.config import LoadedExperiment, is_judged
from harness.errors import HarnessError, UserError, one_line
from harness.evaluation.candidates import base_weights
from harness.evaluation.judges import UngradedAnswer
from harness.evaluation.row_sets import RowSet, list_further_sets, suite_sets, target_sets
from harness.evaluation.runner import open_weights
from harness.evaluation.session import EngineSlot, Session
from harness.evaluation.stored_scores import grade_answers, score_by_grades
from harness.experiment import Scope, ensure_weights, prepare_session, refuse_folds, stands_on
from harness.experiment.study import judge_labels
from harness.formatting import p_value, pluralize
from harness.lifecycle import nightly_changes, nightly_state, production
from harness.lifecycle import nightly_watchlist as watchlist
from harness.lifecycle.nightly_alarm import (
    HARNESS_DRIFT,
    NightReport,
    build_report,
    list_missed_nights,
    tell,
)
from harness.lifecycle.nightly_changes import NightArms, RowsByItem
from harness.lifecycle.nightly_state import Night, NightCandidate
from harness.lifecycle.nightly_watchlist import Watched
from harness.models.hub import ModelSource
from harness.models.openai_api import PROTOCOLS, Settings
from harness.models.out_of_memory import halvings
from harness.progress import Progress, SilentProgress
from harness.records import SampleResult, digest, drop_defaults
from harness.spec import Recipe
from harness.store import Store
from harness.training import Weights

_ANCHORS, _FRESH = "anchors", "fresh"  # kinds of items: those of every night, and those of one


def run_night(
    path: str | Path = "harness.yaml",
    overrides: Sequence[str] = (),
    *,
    night: date | None = None,
    progress: Progress | None = None,
    publish: Callable[[NightReport], object] | None = None,
    slot: EngineSlot | None = None,
) -> NightReport:
    """Run the missing parts of one night of an experiment, and return its report.

    `night` is its date, today by default. `publish` gets the report before its alarms count as raised, so if
    publishing fails or is killed, the same night raises them again. `slot` holds a base that is in memory.
    """
    loaded = config.load(Path(path), overrides)
    session = prepare_session(loaded, Scope(), progress or SilentProgress())
    session.slot = slot or session.slot
    why = "whose rows are those that the champion was trained on"
    refuse_folds(session.folds, "harness nightly run", why)
    day, at = (night or datetime.now().astimezone().date()).isoformat(), session.store
    name, folder = session.experiment.name, nightly_state.home(at, session.experiment.name)
    with _night_lock(folder):
        state, nights = nightly_state.read_state(folder), nightly_state.read_nights(folder)
        if nights and nights[-1].night > day:
            found = f"{day}, before the last night of {nights[-1].night}"
            expected, step = "a night after the last one", "set the clock of this machine, and run it again"
            raise UserError("nightly run", found, expected, step)
        if not any(n.night == day for n in nights):
            with store.hold(at):
                store.begin(at, f"nightly-{name}")
                run = _NightRun(loaded, session, state, nights, day)
                nights.append(run.evaluate())
            state = replace(state, references=run.references)
            nightly_state.write(at, folder, state)
            nightly_state.write(at, folder, nights[-1])
            store.end(at, f"nightly-{name}")
        report = build_report(name, loaded.experiment.nightly, nights, state, loaded.typed)
        if publish is not None:
            publish(report)
        if report.new:
            alarms = (*state.alarms, *report.new)
            nightly_state.write(at, folder, replace(state, alarms=alarms))
    return report


def _night_lock(folder: Path) -> AbstractContextManager[None]:
    found, step = "another nightly run at work there", "wait until it has finished"
    busy = HarnessError(str(folder), found, "to be alone", step)
    return store.hold_file(folder / ".lock", busy, wait_s=0)


@dataclass
class _NightRun:
    # The items of one night, and what the answers to them show.
    loaded: LoadedExperiment
    session: Session
    state: nightly_state.State
    nights: Sequence[Night]  # finished earlier
    day: str

    def __post_init__(self) -> None:
        session, loaded, self.at = self.session, self.loaded, self.session.store
        self.started, self.home = provenance.timestamp(), nightly_state.home(self.at, loaded.experiment.name)
        machine = provenance.describe_environment(session.machine.name)
        self.environment = store.keep_environment(self.at, machine)
        self.targets = (session.target, *session.more_targets)
        # The rows for training and retrieval, then the candidates' own rows.
        first, *more = self.targets
        documents = [list(document) for document in first.items.documents]
        rows = [first.versions["train"], first.versions["validation"], documents]
        training = session.training.values()
        own_rows = [list(map(drop_defaults, (*m.items.train, *m.items.pairs))) for m in training]
        self.data = digest([*rows, *([digest(own_rows)] if own_rows else [])])
        # The tasks of each series, one series per target; `harness compare` covers bits per byte and safety.
        general = [m for m in session.suites if m.role == "capability" and m.task.kind != "bits_per_byte"]
        self.series = {
            "target": [first],
            **{f"target {m.task.name}": [m] for m in more},
            **({"general": general} if general else {}),
        }
        policy, n_taken = loaded.experiment.nightly, self.nights[-1].taken if self.nights else {}
        self.plan: dict[str, watchlist.NightClusters] = {}
        for key, tasks in self.series.items():
            pool = watchlist.build_pool({m.task.name: m.examples("test") for m in tasks}, policy.anchors)
            self.plan[key] = watchlist.choose_next_items(pool, n_taken.get(key, 0), policy.items)
        measured_tasks = [m for tasks in self.series.values() for m in tasks]
        self.metrics = {m.task.name: m.metrics[m.task.primary_metric] for m in measured_tasks}
        self.fresh = [cluster for plan in self.plan.values() for cluster in plan.fresh]
        anchors = [cluster for plan in self.plan.values() for cluster in plan.anchors]
        self.anchors = {item for cluster in anchors for item in cluster}
        self.ids = {_ANCHORS: watchlist.ids_by_task(anchors), _FRESH: watchlist.ids_by_task(self.fresh)}
        self.references = dict(self.state.references)
        self.bases: dict[str, nightly_state.BaseNight] = {}
        self.base_rows: dict[str, tuple[RowsByItem, RowsByItem]] = {}  # tonight's and the reference's

    def evaluate(self) -> Night:
        """Evaluate all watched candidates; the error of one is recorded and does not end the night."""
        session, candidates = self.session, list[NightCandidate]()
        watched = watchlist.targets(self.loaded, session.candidates, session.sources, self.references)
        labels = [label for label, _ in watched]
        with store.StoredProgress(session.progress, self.at, "A night", labels) as session.progress:
            for label, target in watched:
                try:
                    candidates.append(self.compare(target))
                except Exception as error:  # noqa: BLE001 (one candidate must not end the night)
                    candidates.append(NightCandidate(label, "", "", (), error=one_line(error)))
                session.progress.finish(label, f"{label}: {candidates[-1].error or 'evaluated'}")
        device = session.machine.precision, session.machine.name
        flips, n = store.noise_rates(self.at).get(device, (0.0, 0.0))
        return Night(
            night=self.day,
            started=self.started,
            production=self.describe_production(),
            finished=provenance.timestamp(),
            commit=provenance.git_state(self.loaded.folder)[0] or "",
            precision=session.machine.precision,
            environment=self.environment,
            bases=self.bases,
            candidates=tuple(candidates),
            taken={key: items.taken for key, items in self.plan.items()},
            left={key: items.left for key, items in self.plan.items()},
            aa_rate=flips / n if n else None,
        )

    def compare(self, target: Watched | HarnessError) -> NightCandidate:
        """Let a candidate answer tonight's items after its base, and compare it with its reference."""
        if isinstance(target, HarnessError):
            raise target
        session, recipe, base = self.session, target.candidate.recipe, target.candidate.base
        reference = watchlist.find_reference(self.at, target, self.state.references.get(target.name))
        if reference is None:
            base_sets = self.list_base_sets(base)
            reference = watchlist.pin_reference(self.at, self.targets, self.data, target, base_sets)
        weights = ensure_weights(session, target.candidate, target.seed)
        sets = tests = self.list_test_sets(recipe, weights, target.seed)
        if weights.is_language_model and weights.digest != base.weights_digest:
            sets = [*tests, *suite_sets(session, weights)]
        base_rows = self.answer_base(base, reference.base) if weights.is_language_model else None
        making = weights.digest if weights.digest != reference.weights else ""
        compared = [reference.rows, *(reference.makings if making else ())]
        key = target.name, reference.id
        history = [c for n in self.nights for c in n.candidates if (c.name, c.reference) == key]
        earlier = next((c.since for c in reversed(history) if not c.error), "")
        earlier_folder = self.home / earlier if earlier else None
        now, then, before = self.answer(target.name, weights, sets, compared, earlier_folder)
        self.references[target.name] = reference
        since = served = ""
        if weights.kind in PROTOCOLS:
            # The endpoint's weights are hidden, so only changed answers reveal another model.
            tonight = {item: row for item, row in now.items() if item in self.anchors}
            # No earlier rows are found if the evaluation code has changed since.
            has_moved = nightly_changes.has_moved(tonight, before or then[0], self.metrics)
            since = self.day if has_moved else earlier
            endpoint = Settings(**target.candidate.source.params).name
            as_when = f"as since {since}" if since else "as in the reference"
            how = "otherwise than before" if since == self.day else as_when
            served = f"the endpoint ({endpoint}), which answers its anchors {how}"
        promptings = {s.name: s.identity.prompting_digest for s in tests if s.name in reference.rows}
        described = reference, weights.digest, promptings, self.environment, self.data, served
        return NightCandidate(
            name=target.name,
            reference=reference.id,
            tested=digest([weights.digest, promptings, self.environment, since]),
            tests=watchlist.describe_tested(self.at, *described),
            since=since,
            fit_keys=tuple(stands_on(weights)),
            making=making,
            n_references=1 + len(reference.makings),
            judged=self.compare_judged(now, then[0]),
            unwatched=tuple(s.measured.task.name for s in tests if s.name not in reference.rows),
            series=dict(self.compare_series(now, then, base_rows)),
        )

    def compare_judged(self, now: RowsByItem, then: RowsByItem) -> nightly_state.JudgedChange | None:
        metric, task = self.targets[0].primary, self.targets[0].task
        if not is_judged(metric.name):
            return None
        new, old = ([row for (name, _), row in rows.items() if name == task.name] for rows in (now, then))
        labels, limit = judge_labels(self.at, task, metric.name), self.loaded.experiment.gate.max_errors
        return nightly_changes.compare_judged_answers(metric, new, old, labels, limit)

    def compare_series(
        self, now: RowsByItem, then: Sequence[RowsByItem], base: tuple[RowsByItem, RowsByItem] | None
    ) -> Iterator[tuple[str, nightly_state.SeriesNight]]:
        """Yield the changes of each series that the reference answered, adjusted by the control arm's."""
        answered_tasks, limit = {task for task, _ in then[0]}, self.loaded.experiment.gate.max_errors
        for key, measured in self.series.items():
            tasks, plan = {m.task.name for m in measured}, self.plan[key]
            if not answered_tasks & tasks:
                continue
            is_adjusted = base is not None and any(task in tasks for task, _ in base[1])
            arms = NightArms(now, then, *(base if base and is_adjusted else (None, None)))
            yield key, nightly_changes.compare_series(arms, plan.anchors, plan.fresh, self.metrics, limit)

    def answer_base(self, base: ModelSource, reference: Mapping[str, str]) -> tuple[RowsByItem, RowsByItem]:
        """Let a base, the control arm, answer tonight's items once, and compare it with its reference."""
        if base.name not in self.base_rows:
            # Anchors of the first night in this environment since a drift was acknowledged.
            nights = nightly_state.nights_since_ack(self.state, *HARNESS_DRIFT, self.nights)
            first = next((self.home / n.night for n in nights if n.environment == self.environment), None)
            arm = f"base {base.name}", base_weights(base), self.list_base_sets(base)
            n_halvings = len(halvings)
            now, (then,), last = self.answer(*arm, [reference], first)
            self.base_rows[base.name] = now, then
            compared = nightly_changes.compare_base(now, then, self.fresh, last, self.metrics)
            if len(halvings) > n_halvings:  # memory ran out, and other batches explain other answers
                compared = replace(compared, differing=())
            self.bases[base.name] = compared
        return self.base_rows[base.name]

    def list_base_sets(self, base: ModelSource) -> list[RowSet]:
        """List what a base can be evaluated on: the suites, and all targets by the plain prompt."""
        weights = base_weights(base)
        return [*self.list_test_sets(Recipe(), weights, 0), *suite_sets(self.session, weights)]

    def list_test_sets(self, recipe: Recipe, weights: Weights, seed: int) -> list[RowSet]:
        further = list_further_sets(self.session, recipe, weights, seed)
        tests = sorted((rows for rows in further if rows.split == "test"), key=lambda rows: rows.name)
        return [target_sets(self.session, recipe, weights, seed)[1], *tests]

    def answer(
        self,
        name: str,
        weights: Weights,
        sets: Sequence[RowSet],
        references: Sequence[Mapping[str, str]],
        earlier: Path | None,
    ) -> tuple[RowsByItem, list[RowsByItem], RowsByItem]:
        """Evaluate what is missing of the sets that the first reference has.

        Returns tonight's answers, each reference's, and those to the anchors in the folder of an earlier
        night, all as judges grade now.
        """
        session = self.session
        compared = [s for s in sets if s.measured.task.name in self.metrics and s.name in references[0]]
        batches = [
            (rows, kind, ids)
            for rows in compared
            for kind, ids_by_task in self.ids.items()
            if (ids := ids_by_task.get(rows.measured.task.name, []))
        ]
        # Files are named by everything that decides their content.
        keys = [digest([name, rows.identity.digest, kind, ids]) for rows, kind, ids in batches]
        files = [self.home / self.day / "rows" / f"{key}.jsonl" for key in keys]
        stored_rows = [store.read_measured(file) or [] for file in files]
        known = [[row.example_id for row in rows] for rows in stored_rows]
        if missing := [i for i, (_, _, ids) in enumerate(batches) if known[i] != ids]:
            stage = session.progress.stage(f"{name}: {pluralize(len(missing), 'task')}")
            with open_weights(session, weights) as candidate, stage as advance:
                for n_done, i in enumerate(missing, 1):
                    rows, _, ids = batches[i]
                    whole, evaluate = rows.ungraded.job(), rows.measured.evaluate
                    by_id = {e.id: e for e in whole.examples}
                    job = replace(whole, examples=tuple(by_id[id_] for id_ in ids if id_ in by_id))
                    stored_rows[i] = [row for n in range(job.n_blocks) for row in evaluate(candidate, job, n)]
                    store.write_records(session.store, files[i], stored_rows[i])
                    advance(n_done, len(missing))

        def grade(parts: Iterable[tuple[RowSet, Sequence[SampleResult]]]) -> RowsByItem:
            pairs, ungraded = [*parts], list[UngradedAnswer]()
            scored = [score_by_grades(rows, answers, ungraded) for rows, answers in pairs]
            if ungraded:
                grade_answers(session, ungraded)
                scored = [score_by_grades(rows, answers, []) for rows, answers in pairs]
            return {(row.task, row.example_id): row for answers in scored for row in answers}

        def read(rows_digest: str) -> list[SampleResult]:
            drawn = store.read_drawn(session.store, rows_digest)
            return add_samples(store.read_rows(session.store, rows_digest), drawn)

        all_rows = [rows for rows, _, _ in batches]
        now = grade(zip(all_rows, stored_rows, strict=True))
        then = [grade((s, read(reference[s.name])) for s in compared) for reference in references]
        before = grade(
            (rows, store.read_measured(earlier / "rows" / file.name) or ())
            for (rows, kind, _), file in zip(batches, files, strict=True)
            if earlier and kind == _ANCHORS
        )
        return now, then, before

    def describe_production(self) -> tuple[str, ...]:
        """Describe drift in the feedback stored since the last night; empty without feedback."""
        since = datetime.fromisoformat(self.nights[-1].started) if self.nights else None
        try:
            rows = store.read_feedback(self.at, added_since=since)
            if not rows:
                return ()
            drift = production.find_drift(self.loaded, rows)
            moved = (t for t in drift.tests if t.has_moved)
            return (
                f"production, {pluralize(drift.n_requests, 'request')}: {drift.sentence}",
                *(f"{t.of}, {t.trait}: {t.effect} (p by Holm {p_value(t.p_adjusted)})" for t in moved),
            )
        except Exception as error:  # noqa: BLE001 (it must not end the night)
            return (f"production was not compared: {one_line(error)}",)


@dataclass(frozen=True, slots=True)
class Status:
    """State between two nights: the last report, and missed nights."""

    last: NightReport | None
    n_nights: int
    missed: tuple[str, ...]
    unfinished: tuple[str, ...]
    open: tuple[nightly_state.Alarm, ...]


def status(path: Path, today: str) -> Status:
    """Report the state of an experiment's nights; no model is loaded."""
    loaded = config.load(path)
    folder = nightly_state.home(Store(loaded.folder / "runs"), loaded.experiment.name)
    state, nights = nightly_state.read_state(folder), nightly_state.read_nights(folder)
    name, policy = loaded.experiment.name, loaded.experiment.nightly
    last = build_report(name, policy, nights, state, loaded.typed) if nights else None
    # Nights that started but did not finish.
    dates = sorted(p.parent.name for p in folder.glob("*/rows") if not (p.parent / "night.json").exists())
    missed = tuple(list_missed_nights(nights, today))
    return Status(last, len(nights), missed, tuple(dates), tuple(nightly_state.open_alarms(state)))


def acknowledge(path: Path, about: str | None, *, new_reference: bool = False) -> list[nightly_state.Alarm]:
    """Acknowledge the open alarms about a candidate, `harness`, or all; evidence then starts again."""
    loaded = config.load(path)
    at = Store(loaded.folder / "runs")
    folder = nightly_state.home(at, loaded.experiment.name)
    with _night_lock(folder):
        state, nights = nightly_state.read_state(folder), nightly_state.read_nights(folder)
        state, closed = nightly_state.acknowledge_alarms(state, about, nights[-1].night if nights else "")
        if new_reference:
            kept_references = {n: r for n, r in state.references.items() if about not in (None, "harness", n)}
            state = replace(state, references=kept_references)
        if not closed and not new_reference:
            alarms = nightly_state.open_alarms(state)
            found = f"no open alarm about {about}" if about else "no open alarm"
            step = f"one of: {', '.join(a.about for a in alarms)}" if alarms else "there is nothing to do"
            raise UserError(f"nightly ack, {loaded.experiment.name}", found, "an alarm to close", step)
        nightly_state.write(at, folder, state)
    return closed


def send(path: Path, webhook: str, night: str) -> str:
    """Send unsent open alarms to a webhook; return the error, if any."""
    loaded = config.load(path)
    at = Store(loaded.folder / "runs")
    folder = nightly_state.home(at, loaded.experiment.name)
    with _night_lock(folder):
        state = nightly_state.read_state(folder)
        unsent = [alarm for alarm in nightly_state.open_alarms(state) if not alarm.told]
        error = tell(unsent, loaded.experiment.name, webhook) if unsent else ""
        if unsent and not error:
            alarms = tuple(replace(a, told=night) if a in unsent else a for a in state.alarms)
            nightly_state.write(at, folder, replace(state, alarms=alarms))
    return error
