"""Nights on disk: one folder per night, and the references and alarms of an experiment.

Invariant: a night is finished once `night.json` exists; until then the same night can be resumed. Unreadable
files are refused.

    runs/nightly/<experiment>/state.json                 pinned references, alarms
    runs/nightly/<experiment>/<date>/night.json          a finished night
    runs/nightly/<experiment>/<date>/rows/<key>.jsonl    its answers
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from harness import store
from harness.errors import refuse_unreadable
from harness.records import load
from harness.store import Store

_WRITTEN = "what a night wrote"


@dataclass(frozen=True, slots=True)
class SeriesNight:
    """One series of one candidate in one night; changes are adjusted by the control arm.

    `changes` maps rotating clusters to their mean change as a share of the metric's range, `anchors` the
    clusters of every night. `lost` names items that got worse, `left_out` counts items that could not be
    compared, `errors` failed answers; `unbounded` names tasks without a range, which are not judged.
    """

    changes: dict[str, float]
    anchors: dict[str, float]
    lost: tuple[str, ...] = ()
    left_out: int = 0
    adjusted: bool = True
    unbounded: tuple[str, ...] = ()
    errors: int = 0
    n_asked: int = 0
    valid: bool = True


@dataclass(frozen=True, slots=True)
class JudgedChange:
    """Tonight's answers to the target compared with the reference's by a judge's grades.

    `n_changed` answers differ from the reference's; `n_unlabelled` of them have no label by people. `delta`
    in [−1, 1] is the change by the judge's grades, `corrected` that corrected by labels, with its interval.
    """

    metric: str
    n_changed: int
    n_unlabelled: int
    delta: float
    corrected: tuple[float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class NightCandidate:
    """One candidate in one night.

    `tested` is the digest of what answered (weights, prompting, environment); the same digest on the same
    items is no new evidence. `tests` describes what is new. `since` is the night since which an endpoint
    gives its current anchor answers, empty if they equal the reference's. `fit_keys` names the folders of the
    weights. `making` is the digest of weights that differ from the reference's, which is then the mean of
    `n_references` makings. `unwatched` names targets without rows in the reference.
    """

    name: str
    reference: str
    tested: str
    tests: tuple[str, ...]
    series: dict[str, SeriesNight] = field(default_factory=dict)
    error: str = ""
    since: str = ""
    fit_keys: tuple[str, ...] = ()
    making: str = ""
    n_references: int = 1
    judged: JudgedChange | None = None
    unwatched: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BaseNight:
    """Control arm: flipped scores, items with other prompts, anchors that differ from the last night."""

    flips: dict[str, bool]
    reworded: tuple[str, ...] = ()
    differing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Night:
    """One finished night; `taken` and `left` count clusters of each pool, `production` describes drift.

    `aa_rate` is the A/A rate that was measured on the night's device, None if none was.
    """

    night: str
    started: str
    finished: str
    commit: str
    precision: str
    environment: str
    bases: dict[str, BaseNight]
    candidates: tuple[NightCandidate, ...]
    taken: dict[str, int]
    left: dict[str, int]
    production: tuple[str, ...] = ()
    aa_rate: float | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """Reference of a candidate: digests of row sets by task and split, of it and of its base.

    `makings` are those of the same recipe with other seeds, for comparing weights that are trained again.
    `promptings` maps the test rows of all targets to the digests of the prompting.
    """

    id: str
    rows: dict[str, str]
    base: dict[str, str]
    weights: str
    promptings: dict[str, str]
    data: str
    environment: str
    seed: int = 0
    makings: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Alarm:
    """Alarm, raised once; `acknowledged` and `told` (sent) are times, empty if not yet."""

    about: str
    verdict: str
    night: str
    sentence: str
    told: str = ""
    acknowledged: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """References, and all alarms including acknowledged ones."""

    references: dict[str, Reference] = field(default_factory=dict)
    alarms: tuple[Alarm, ...] = ()


def home(at: Store, experiment: str) -> Path:
    """Return the folder of an experiment's nights."""
    return at.place("nightly", experiment)


def read_state(folder: Path) -> State:
    """Read references and alarms; empty if there are none."""
    path = folder / "state.json"
    if not path.exists():
        return State()
    with refuse_unreadable(path, _WRITTEN, "remove it; references are then pinned again"):
        return load(State, path.read_bytes())


def write(at: Store, folder: Path, content: State | Night) -> None:
    """Replace the file of references and alarms, or write a night, which marks it as finished."""
    file = "state.json" if isinstance(content, State) else f"{content.night}/night.json"
    store.write_whole(at, folder / file, json.dumps(asdict(content), indent=1) + "\n")


def read_nights(folder: Path) -> list[Night]:
    """Read all finished nights, oldest first."""
    nights = []
    for path in sorted(folder.glob("*/night.json")):
        with refuse_unreadable(path, _WRITTEN, f"remove {path.parent}; the night then counts as missed"):
            nights.append(load(Night, path.read_bytes()))
    return nights


def references(at: Store) -> set[str]:
    """List the files that nights use: pinned references, and the weights of each experiment's last night."""
    folders = sorted((at.folder / "nightly").glob("*"))
    pinned = [r for folder in folders for r in read_state(folder).references.values()]
    last = [c for folder in folders for night in read_nights(folder)[-1:] for c in night.candidates]
    names = {key for c in last for key in c.fit_keys} | {r.weights for r in pinned}
    return names.union(*(rows.values() for r in pinned for rows in (r.rows, r.base, *r.makings)))


def acknowledge_alarms(state: State, about: str | None, today: str) -> tuple[State, list[Alarm]]:
    """Acknowledge the open alarms about a candidate, or all; return them."""
    closed_alarms = [a for a in open_alarms(state) if about in (None, a.about)]
    alarms = tuple(replace(a, acknowledged=today) if a in closed_alarms else a for a in state.alarms)
    return replace(state, alarms=alarms), closed_alarms


def open_alarms(state: State) -> list[Alarm]:
    """List the unacknowledged alarms."""
    return [a for a in state.alarms if not a.acknowledged]


def nights_since_ack(state: State, about: str, verdict: str, nights: Sequence[Night]) -> list[Night]:
    """Select the nights after the last acknowledgement of an alarm, at which evidence restarts."""
    acks = [a for a in state.alarms if (a.about, a.verdict) == (about, verdict) and a.acknowledged]
    last = max((a.acknowledged for a in acks), default="")
    return [n for n in nights if n.night > last]
