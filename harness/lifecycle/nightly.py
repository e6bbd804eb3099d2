"""One nightly run: the base and all watched candidates are evaluated again and compared with references.

Invariant: one process at a time; a failed candidate does not end the night; repeating a night evaluates only
what is missing. An alarm is raised once and stays until it is acknowledged; an unchanged candidate raises one
with a probability of at most `nightly.alpha`, however many nights are evaluated.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path

from harness import config, provenance, store
from harness.config import LoadedExperiment, is_judged
from harness.errors import HarnessError, UserError, one_line
from harness.evaluation.session import EngineSlot, MeasuredTask
from harness.experiment import Scope, fewer_items, prepare_session, refuse_folds, stands_on
from harness.experiment.fewer_items import ANCHORS, FRESH, NightAnswers, Watched, answer_night
from harness.experiment.study import judge_labels
from harness.formatting import p_value, pluralize
from harness.lifecycle import nightly_changes, nightly_state, production
from harness.lifecycle import nightly_watchlist as watchlist
from harness.lifecycle.nightly_alarm import HARNESS, NightReport, build_report, list_missed_nights, tell
from harness.lifecycle.nightly_changes import NightArms
from harness.models.hardware import Machine
from harness.models.openai_api import PROTOCOLS, Settings
from harness.progress import Progress, SilentProgress
from harness.records import digest, drop_defaults
from harness.store import Store


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
                targets, training = (session.target, *session.more_targets), session.training.values()
                data = targets, session.suites, training
                run = _NightRun(loaded, at, session.machine, *data, state, nights, day)
                watched = watchlist.targets(loaded, session.candidates, session.sources, state.references)
                labels = [label for label, _ in watched]
                with store.StoredProgress(session.progress, at, "A night", labels) as stored_progress:
                    session.progress = stored_progress
                    for label, target in watched:
                        with run.record(label, stored_progress):
                            if isinstance(target, HarnessError):
                                raise target
                            base, before = target.candidate.base, state.references.get(target.name)
                            reference = watchlist.find_reference(at, target, before)
                            if reference is None:
                                sets = fewer_items.list_base_sets(session, base)
                                reference = watchlist.pin_reference(at, targets, run.data, target, sets)
                            target = run.watch(target, reference)
                            answers = answer_night(session, target, folder / day, run.items, run.bases)
                            run.compare(target, reference, answers)
                night_of_day = run.finish()
            state = replace(state, references=run.references)
            nightly_state.write(at, folder, state)
            nightly_state.write(at, folder, night_of_day)
            store.end(at, f"nightly-{name}")
            nights.append(night_of_day)
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


class _NightRun:
    # The items of one night, and what the answers to them show.
    def __init__(
        self,
        loaded: LoadedExperiment,
        at: Store,
        machine: Machine,
        targets: Sequence[MeasuredTask],
        suites: Sequence[MeasuredTask],
        training: Iterable[MeasuredTask],
        state: nightly_state.State,
        nights: Sequence[nightly_state.Night],
        day: str,
    ) -> None:
        self.loaded, self.at, self.day, self.state, self.nights = loaded, at, day, state, nights
        self.home, self.targets = nightly_state.home(at, loaded.experiment.name), targets
        self.precision, (first, *more) = machine.precision, targets
        self.environment = store.keep_environment(at, provenance.describe_environment(machine.name))
        # The rows for training and retrieval, then the candidates' own rows.
        documents = [list(document) for document in first.items.documents]
        rows = [first.versions["train"], first.versions["validation"], documents]
        own_rows = [list(map(drop_defaults, (*m.items.train, *m.items.pairs))) for m in training]
        self.data = digest([*rows, *([digest(own_rows)] if own_rows else [])])
        # The tasks of each series, one series per target; `harness compare` covers bits per byte and safety.
        general = [m for m in suites if m.role == "capability" and m.task.kind != "bits_per_byte"]
        self.series = {
            "target": [first],
            **{f"target {m.task.name}": [m] for m in more},
            **({"general": general} if general else {}),
        }
        policy, n_taken = loaded.experiment.nightly, nights[-1].taken if nights else {}
        self.plan: dict[str, watchlist.NightClusters] = {}
        for key, tasks in self.series.items():
            pool = watchlist.build_pool({m.task.name: m.examples("test") for m in tasks}, policy.anchors)
            self.plan[key] = watchlist.choose_next_items(pool, n_taken.get(key, 0), policy.items)
        measured_tasks = [m for tasks in self.series.values() for m in tasks]
        self.metrics = {m.task.name: m.metrics[m.task.primary_metric] for m in measured_tasks}
        self.anchors = [cluster for plan in self.plan.values() for cluster in plan.anchors]
        self.fresh = [cluster for plan in self.plan.values() for cluster in plan.fresh]
        ids = {
            ANCHORS: watchlist.ids_by_task(self.anchors),
            FRESH: watchlist.ids_by_task(self.fresh),
        }
        self.items = {
            task: {kind: by_task.get(task, []) for kind, by_task in ids.items()} for task in self.metrics
        }
        self.bases: dict[str, NightAnswers] = {}
        self.references = dict(state.references)
        self.candidates: list[nightly_state.NightCandidate] = []
        self.started = provenance.timestamp()

    @contextmanager
    def record(self, label: str, progress: Progress) -> Iterator[None]:
        """Record the error of a candidate that fails, and show that it is done."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (one candidate must not end the night)
            failed = nightly_state.NightCandidate(label, "", "", (), error=one_line(error))
            self.candidates.append(failed)
        progress.finish(label, f"{label}: {self.candidates[-1].error or 'evaluated'}")

    def watch(self, target: Watched, reference: nightly_state.Reference) -> Watched:
        """Return a candidate with its reference, and the night since which its endpoint answers as it did."""
        key = target.name, reference.id
        history = [w for n in self.nights for w in n.candidates if (w.name, w.reference) == key]
        since = next((w.since for w in reversed(history) if not w.error), "")
        return target._replace(
            rows=reference.rows,
            weights=reference.weights,
            makings=reference.makings,
            base=reference.base,
            earlier=self.home / since if since else None,
        )

    def compare(self, target: Watched, reference: nightly_state.Reference, answers: NightAnswers) -> None:
        weights, now, then = answers.weights, answers.now, answers.then
        tests = [rows for rows in answers.sets if rows.measured.role == "target"]
        promptings = {s.name: s.identity.prompting_digest for s in tests if s.name in reference.rows}
        unwatched = tuple(s.measured.task.name for s in tests if s.name not in reference.rows)
        making = weights.digest if weights.digest != reference.weights else ""
        self.references[target.name] = reference
        since = served = ""
        if weights.kind in PROTOCOLS:
            # The endpoint's weights are hidden, so only changed answers reveal another model.
            anchors = {item for cluster in self.anchors for item in cluster}
            tonight = {item: row for item, row in now.items() if item in anchors}
            # No earlier rows are found if the evaluation code has changed since.
            has_moved = nightly_changes.has_moved(tonight, answers.earlier or then[0], self.metrics)
            earlier = target.earlier.name if target.earlier else ""
            since = self.day if has_moved else earlier
            endpoint = Settings(**target.candidate.source.params).name
            as_when = f"as since {since}" if since else "as in the reference"
            how = "otherwise than before" if since == self.day else as_when
            served = f"the endpoint ({endpoint}), which answers its anchors {how}"
        metric, task, judged = self.targets[0].primary, self.targets[0].task, None
        limit = self.loaded.experiment.gate.max_errors
        if is_judged(metric.name):
            new, old = (
                [row for (name, _), row in rows.items() if name == task.name] for rows in (now, then[0])
            )
            labels = judge_labels(self.at, task, metric.name)
            judged = nightly_changes.compare_judged_answers(metric, new, old, labels, limit)
        answered_tasks, series = {task for task, _ in then[0]}, {}
        base = self.bases[target.candidate.base.name] if weights.is_language_model else None
        for key, measured in self.series.items():
            tasks = {m.task.name for m in measured}
            if not answered_tasks & tasks:
                continue
            arms = NightArms(now, then, None, None)
            if base is not None and any(item[0] in tasks for item in base.then[0]):
                arms = arms._replace(base_now=base.now, base_then=base.then[0])
            plan = self.plan[key]
            series[key] = nightly_changes.compare_series(arms, plan.anchors, plan.fresh, self.metrics, limit)
        described = reference, weights.digest, promptings, self.environment, self.data, served
        entry = nightly_state.NightCandidate(
            name=target.name,
            reference=reference.id,
            tested=digest([weights.digest, promptings, self.environment, since]),
            tests=watchlist.describe_tested(self.at, *described),
            since=since,
            fit_keys=tuple(stands_on(weights)),
            making=making,
            n_references=1 + len(reference.makings),
            judged=judged,
            unwatched=unwatched,
            series=series,
        )
        self.candidates.append(entry)

    def finish(self) -> nightly_state.Night:
        # Drift in the feedback stored since the last night; empty without feedback.
        since = datetime.fromisoformat(self.nights[-1].started) if self.nights else None
        lines: list[str] = []
        try:
            rows = store.read_feedback(self.at, added_since=since)
            if rows:
                drift = production.find_drift(self.loaded, rows)
                lines = [f"production, {pluralize(drift.n_requests, 'request')}: {drift.sentence}"]
                moved = (t for t in drift.tests if t.has_moved)
                lines += (f"{t.of}, {t.trait}: {t.effect} (p by Holm {p_value(t.p_adjusted)})" for t in moved)
        except Exception as error:  # noqa: BLE001 (it must not end the night)
            lines = [f"production was not compared: {one_line(error)}"]
        return nightly_state.Night(
            night=self.day,
            started=self.started,
            finished=provenance.timestamp(),
            commit=provenance.git_state(self.loaded.folder)[0] or "",
            precision=self.precision,
            environment=self.environment,
            bases={name: self._compare_base(f"base {name}", arm) for name, arm in self.bases.items()},
            candidates=tuple(self.candidates),
            taken={key: items.taken for key, items in self.plan.items()},
            left={key: items.left for key, items in self.plan.items()},
            production=tuple(lines),
        )

    def _compare_base(self, label: str, arm: NightAnswers) -> nightly_state.BaseNight:
        # Anchors of the first night in this environment since a drift was acknowledged.
        nights = nightly_state.nights_since_ack(self.state, HARNESS, "harness-drift", self.nights)
        first = next((self.home / n.night for n in nights if n.environment == self.environment), None)
        files = [fewer_items.batch_file(first, label, b) for b in arm.batches if first and b.kind == ANCHORS]
        last = {(row.task, row.example_id): row for f in files for row in store.read_measured(f) or ()}
        return nightly_changes.compare_base(arm.now, arm.then[0], self.fresh, last, self.metrics)


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
