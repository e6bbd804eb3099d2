"""One nightly run: the base and all watched candidates are evaluated again and compared with references.

Invariant: one process at a time; a failed candidate does not end the night; repeating a night evaluates only
what is missing. An alarm is raised once and stays until it is acknowledged; an unchanged candidate raises one
with a probability of at most `nightly.alpha`, however many nights are evaluated.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from typing import NamedTuple

from harness import config, provenance, store
from harness.analysis.answers import add_samples
from harness.config import LoadedExperiment, is_judged
from harness.errors import HarnessError, UserError, one_line
from harness.evaluation.candidates import base_weights
from harness.evaluation.judging_stage import grade_rows
from harness.evaluation.row_sets import RowSet, suite_sets
from harness.evaluation.session import Session
from harness.experiment import Scope, ensure_weights, prepare_session, refuse_folds, stands_on
from harness.experiment.study import judge_labels
from harness.formatting import p_value, pluralize
from harness.lifecycle import nightly_changes, nightly_state, production, watchlist
from harness.lifecycle.nightly_alarm import (
    HARNESS,
    NightReport,
    build_report,
    list_missed_nights,
    night_document,
    refuse_webhook,
    tell,
    to_json,
    write,
)
from harness.lifecycle.nightly_changes import NightArms
from harness.lifecycle.watchlist import ItemBatch, NightItems, Rows, Target
from harness.models.openai_api import PROTOCOLS, Settings
from harness.progress import Progress, SilentProgress
from harness.records import digest
from harness.store import Store

Publish = Callable[[NightReport], object]


def run_night(
    path: str | Path = "harness.yaml",
    overrides: Sequence[str] = (),
    *,
    night: date | None = None,
    progress: Progress | None = None,
    publish: Publish | None = None,
) -> NightReport:
    """Run the missing parts of one night of an experiment, and return its report.

    `night` is its date, today by default. `publish` gets the report before its alarms count as raised, so if
    publishing fails or is killed, the same night raises them again.
    """
    loaded = config.load(Path(path), overrides)
    session = prepare_session(loaded, Scope(), progress or SilentProgress())
    return run_prepared(session, loaded, night or datetime.now().astimezone().date(), publish)


def run_prepared(
    session: Session, loaded: LoadedExperiment, day: date, publish: Publish | None = None
) -> NightReport:
    """Run one night on a prepared session, and publish it like `run_night`."""
    why = "whose rows are those that the champion was trained on"
    refuse_folds(session.folds, "harness nightly run", why)
    folder, experiment = nightly_state.home(session.store, session.experiment.name), session.experiment
    with _night_lock(folder):
        state, nights = nightly_state.read_state(folder), nightly_state.read_nights(folder)
        if nights and nights[-1].night > day.isoformat():
            found = f"{day}, before the last night of {nights[-1].night}"
            expected, step = "a night after the last one", "set the clock of this machine, and run it again"
            raise UserError("nightly run", found, expected, step)
        if not any(n.night == day.isoformat() for n in nights):
            with store.hold(session.store):
                store.begin(session.store, f"nightly-{experiment.name}")
                night, references = _NightRun(session, loaded, folder, day, state, nights).run()
            state = replace(state, references=references)
            nightly_state.write_state(session.store, folder, state)
            nightly_state.write_night(session.store, folder, night)
            store.end(session.store, f"nightly-{experiment.name}")
            nights.append(night)
        report = build_report(experiment.name, experiment.nightly, nights, state, loaded.typed)
        if publish is not None:
            publish(report)
        if report.new:
            alarms = (*state.alarms, *report.new)
            nightly_state.write_state(session.store, folder, replace(state, alarms=alarms))
    return report


def _night_lock(folder: Path) -> AbstractContextManager[None]:
    found, step = "another nightly run at work there", "wait until it has finished"
    busy = HarnessError(str(folder), found, "to be alone", step)
    return store.hold_file(folder / ".lock", busy, wait_s=0)


class _BaseRows(NamedTuple):
    now: Rows
    then: Rows
    night: nightly_state.BaseNight


class _NightRun:
    def __init__(
        self,
        session: Session,
        loaded: LoadedExperiment,
        folder: Path,
        day: date,
        state: nightly_state.State,
        nights: Sequence[nightly_state.Night],
    ) -> None:
        self.session, self.loaded, self.day, self.nights = session, loaded, day.isoformat(), nights
        self.folder, self.home, self.state = folder / self.day, folder, state
        environment = provenance.describe_environment(session.machine.name)
        self.environment = store.keep_environment(session.store, environment)
        # The tasks of each series, one series per target; `harness compare` covers bits per byte and safety.
        suites = [m for m in session.suites if m.role == "capability" and m.task.kind != "bits_per_byte"]
        self.tasks = {
            "target": [session.target],
            **{f"target {m.task.name}": [m] for m in session.more_targets},
            **({"general": suites} if suites else {}),
        }
        policy, n_taken = session.experiment.nightly, nights[-1].taken if nights else {}
        self.plan: dict[str, NightItems] = {}
        for key, measured in self.tasks.items():
            pool = watchlist.build_pool({m.task.name: m.examples("test") for m in measured}, policy.anchors)
            self.plan[key] = watchlist.choose_next_items(pool, n_taken.get(key, 0), policy.items)
        measured_tasks = [m for measured in self.tasks.values() for m in measured]
        self.metrics = {m.task.name: m.metrics[m.task.primary_metric] for m in measured_tasks}
        self.controls: dict[str, _BaseRows] = {}
        self.references = dict(state.references)

    def run(self) -> tuple[nightly_state.Night, dict[str, nightly_state.Reference]]:
        """Evaluate every candidate; return the night and the references, including new ones."""
        started = provenance.timestamp()
        chosen = watchlist.targets(self.loaded, self.session, self.references)
        labels = [label for label, _ in chosen]
        with store.StoredProgress(self.session.progress, self.session.store, "A night", labels) as progress:
            self.session = replace(self.session, progress=progress)
            candidates = []
            for label, target in chosen:
                try:
                    if isinstance(target, HarnessError):
                        raise target
                    entry = self._evaluate(target)
                except Exception as error:  # noqa: BLE001 (one candidate must not end the night)
                    entry = nightly_state.NightCandidate(label, "", "", (), error=one_line(error))
                self.session.progress.finish(label, f"{label}: {entry.error or 'evaluated'}")
                candidates.append(entry)
        # Drift in the feedback stored since the last night; empty without feedback.
        since = datetime.fromisoformat(self.nights[-1].started) if self.nights else None
        lines: list[str] = []
        try:
            rows = store.read_feedback(self.session.store, added_since=since)
            if rows:
                drift = production.find_drift(self.loaded, rows)
                lines = [f"production, {pluralize(drift.n_requests, 'request')}: {drift.sentence}"]
                moved = (t for t in drift.tests if t.has_moved)
                lines += (f"{t.of}, {t.trait}: {t.effect} (p by Holm {p_value(t.p_adjusted)})" for t in moved)
        except Exception as error:  # noqa: BLE001 (it must not end the night)
            lines = [f"production was not compared: {one_line(error)}"]
        night = nightly_state.Night(
            night=self.day,
            started=started,
            finished=provenance.timestamp(),
            commit=provenance.git_state(self.loaded.folder)[0] or "",
            precision=self.session.machine.precision,
            environment=self.environment,
            bases={name: control.night for name, control in self.controls.items()},
            candidates=tuple(candidates),
            taken={key: items.taken for key, items in self.plan.items()},
            left={key: items.left for key, items in self.plan.items()},
            production=tuple(lines),
        )
        return night, self.references

    def _evaluate(self, target: Target) -> nightly_state.NightCandidate:
        session = self.session
        reference = watchlist.pin_reference(session, target, self.references.get(target.name))
        weights = ensure_weights(session, target.candidate, target.seed)
        # The targets, and the suites if the weights are not the base's.
        test_sets = watchlist.list_test_sets(session, target.candidate.recipe, weights, target.seed)
        promptings = {s.name: s.identity.prompting_digest for s in test_sets if s.name in reference.rows}
        unwatched = tuple(s.measured.task.name for s in test_sets if s.name not in reference.rows)
        if weights.is_language_model and weights.digest != target.candidate.base.weights_digest:
            test_sets += suite_sets(session, weights)
        sets = self._comparable_sets(test_sets, reference.rows)
        control = self._control(target, reference) if weights.is_language_model else None
        batches = self._batches(sets)
        now = watchlist.reevaluate(session, self.folder, target.name, weights, batches)
        making = weights.digest if weights.digest != reference.weights else ""
        makings = [reference.rows, *(reference.makings if making else ())]
        then = [self._reference_rows(sets, rows) for rows in makings]
        self.references[target.name] = reference
        since = served = ""
        if weights.kind in PROTOCOLS:
            since = self._find_night_of_change(target.name, reference.id, batches, now, then[0])
            endpoint = Settings(**target.candidate.source.params).name
            as_when = f"as since {since}" if since else "as in the reference"
            how = "otherwise than before" if since == self.day else as_when
            served = f"the endpoint ({endpoint}), which answers its anchors {how}"
        metric, task, judged = session.target.primary, session.target.task, None
        limit = session.experiment.gate.max_errors
        if is_judged(metric.name):
            tonight, earlier_rows = (
                [row for (name, _), row in rows.items() if name == task.name] for rows in (now, then[0])
            )
            labels = judge_labels(session.store, task, metric.name)
            judged = nightly_changes.compare_judged_answers(metric, tonight, earlier_rows, labels, limit)
        answered_tasks, series = {row_set.measured.task.name for row_set in sets}, {}
        for key, measured in self.tasks.items():
            tasks = {m.task.name for m in measured}
            if not answered_tasks & tasks:
                continue
            arms = NightArms(now, then, None, None)
            if control is not None and any(item[0] in tasks for item in control.then):
                arms = arms._replace(base_now=control.now, base_then=control.then)
            plan = self.plan[key]
            series[key] = nightly_changes.compare_series(arms, plan.anchors, plan.fresh, self.metrics, limit)
        tests = watchlist.describe_tested(session, reference, weights, promptings, self.environment, served)
        return nightly_state.NightCandidate(
            name=target.name,
            reference=reference.id,
            tested=digest([weights.digest, promptings, self.environment, since]),
            tests=tests,
            since=since,
            fit_keys=tuple(stands_on(weights)),
            making=making,
            n_references=1 + len(reference.makings),
            judged=judged,
            unwatched=unwatched,
            series=series,
        )

    def _find_night_of_change(
        self, name: str, reference: str, batches: Sequence[ItemBatch], now: Rows, then: Rows
    ) -> str:
        """Return the night since which an endpoint gives its current anchor answers; empty if unchanged."""
        # The endpoint's weights are hidden, so only changed answers reveal another model.
        fixed = [batch for batch in batches if batch.kind == "anchors"]
        history = [w for n in self.nights for w in n.candidates if (w.name, w.reference) == (name, reference)]
        since = next((w.since for w in reversed(history) if not w.error), "")
        if since:
            files = [watchlist.batch_file(self.home / since, name, batch) for batch in fixed]
            parts = [(b.rows, store.read_measured(file) or ()) for b, file in zip(fixed, files, strict=True)]
            earlier = watchlist.index_by_item(row for rows in grade_rows(self.session, parts) for row in rows)
            then = earlier or then  # no rows are found if the evaluation code has changed since
        anchors = {(batch.rows.measured.task.name, i) for batch in fixed for i in batch.ids}
        tonight_s = {item: row for item, row in now.items() if item in anchors}
        return self.day if nightly_changes.has_moved(tonight_s, then, self.metrics) else since

    def _control(self, target: Target, reference: nightly_state.Reference) -> _BaseRows:
        source = target.candidate.base
        if source.name not in self.controls:
            sets = self._comparable_sets(watchlist.base_sets(self.session, source), reference.base)
            batches, label = self._batches(sets), f"base {source.name}"
            now = watchlist.reevaluate(self.session, self.folder, label, base_weights(source), batches)
            then = self._reference_rows(sets, reference.base)
            fresh = [cluster for items in self.plan.values() for cluster in items.fresh]
            # Anchors of the first night in this environment since a drift was acknowledged.
            nights = nightly_state.nights_since_ack(self.state, HARNESS, "harness-drift", self.nights)
            first = next((self.home / n.night for n in nights if n.environment == self.environment), None)
            files = [watchlist.batch_file(first, label, b) for b in batches if first and b.kind == "anchors"]
            last = watchlist.index_by_item(row for file in files for row in store.read_measured(file) or ())
            base_night = nightly_changes.compare_base(now, then, fresh, last, self.metrics)
            self.controls[source.name] = _BaseRows(now, then, base_night)
        return self.controls[source.name]

    def _comparable_sets(self, sets: Sequence[RowSet], reference: Mapping[str, str]) -> list[RowSet]:
        return [s for s in sets if s.measured.task.name in self.metrics and s.name in reference]

    def _batches(self, sets: Sequence[RowSet]) -> list[ItemBatch]:
        """Group tonight's items by task and kind; tasks without items are left out."""
        plans = self.plan.values()
        ids_by_kind = {
            "anchors": watchlist.ids_by_task(cluster for plan in plans for cluster in plan.anchors),
            "fresh": watchlist.ids_by_task(cluster for plan in plans for cluster in plan.fresh),
        }
        return [
            ItemBatch(rows, kind, tuple(ids))
            for rows in sets
            for kind, by_task in ids_by_kind.items()
            if (ids := by_task.get(rows.measured.task.name))
        ]

    def _reference_rows(self, sets: Sequence[RowSet], reference: Mapping[str, str]) -> Rows:
        """Read the reference's rows with all answers per item, graded by tonight's judges."""
        at, digests = self.session.store, [reference[s.name] for s in sets]
        rows = [add_samples(store.read_rows(at, key), store.read_drawn(at, key)) for key in digests]
        parts = list(zip(sets, rows, strict=True))
        return watchlist.index_by_item(row for graded in grade_rows(self.session, parts) for row in graded)


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
        nightly_state.write_state(at, folder, state)
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
            nightly_state.write_state(at, folder, replace(state, alarms=alarms))
    return error
