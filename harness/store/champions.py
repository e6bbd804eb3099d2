"""Champions of targets and their histories, in files that are reviewed.

`baselines/champions/<target>.json` holds the released run, `<target>.history.jsonl` the path to it.
Invariant: the files hold digests and numbers, never a path of a machine. A line of the history is never
changed, and only the lines determine the champion. An entry is on disk before `<target>.json` follows it,
so after a kill that file is at most one entry behind and is written again; a file ahead of its history shows
that lines were lost.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness.cache import fill_cache_file, make_private_folder, sync
from harness.errors import UserError, as_argument, refuse_unreadable
from harness.formatting import Unit
from harness.records import StoredName, checksum, is_bare_name, load, read_object
from harness.spec import Recipe
from harness.store.layout import Store, append_records, write_record, write_records

Event = Literal["promotion", "rollback", "retirement"]


@dataclass(frozen=True, slots=True)
class Champion:
    """The run that gates compare with; `scores` maps "task metric" to [score, low, high, n] on test.

    `units` holds the units of scores other than rates where higher is better. `verdict` and `sentence` are
    the gate's at promotion, `despite` the reason for promoting a run that had not passed. `cumulative` is the
    macro change against `first_base`, the base of the target's first champion, as [delta, low, high, n];
    empty if unknown. `files` maps each file of its own weights to its SHA-256. `entry` is, in the champion's
    own file, the number of the last entry of the history; in the history it is 0.
    """

    target: StoredName
    run_id: StoredName
    candidate: str
    seed: int
    experiment: str
    base_model: str
    weights_digest: str
    base_digest: str
    created: str
    rows: dict[str, StoredName]
    scores: dict[str, list[float]]
    recipe: dict[str, Any]
    verdict: str = ""
    sentence: str = ""
    despite: str = ""
    units: dict[str, Unit] = field(default_factory=dict)
    first_base: str = ""
    cumulative: list[float] = field(default_factory=list)
    fit_key: str = ""
    files: dict[str, str] = field(default_factory=dict)
    entry: int = 0


def champion_file(folder: Path, target: str) -> Path:
    """Return the path of a target's champion, below the experiment's folder."""
    return folder / "baselines" / "champions" / f"{target}.json"


def hash_weights(store: Store, fit_key: str) -> dict[str, str]:
    """Map each file of trained weights, without tracked checkpoints, to the SHA-256 of its content now."""
    folder = store.weights(fit_key) if fit_key else store.folder / "weights"
    kind = read_object(folder / "fit.json").get("kind")
    kind_paths = folder.glob(f"{kind}*") if isinstance(kind, str) and is_bare_name(kind) else ()
    files = sorted(file for path in kind_paths for file in (path, *path.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): checksum(file) for file in files}


@dataclass(frozen=True, slots=True)
class ChampionEntry:
    """A promotion, rollback or retirement: its number, from 1, and when, by whom and why.

    `promoted` is the number of the promotion that it is about, and `champion` what was promoted then. `keep`
    is how many champions are kept from then on. `data` maps "task/split" to the version of its items;
    `exports` maps each export of the run to the SHA-256 of its files.
    """

    number: int
    event: Event
    when: str
    who: str
    why: str
    promoted: int
    champion: Champion
    keep: int
    code: dict[str, Any] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    exports: dict[str, dict[str, str]] = field(default_factory=dict)


class History(NamedTuple):
    """The entries of a target, oldest first, and a note on each line that was cut short."""

    entries: tuple[ChampionEntry, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def present(self) -> ChampionEntry | None:
        """The promotion of the present champion; None if there is none or it was retired."""
        last = next((entry for entry in reversed(self.entries) if entry.event != "retirement"), None)
        return self.entries[last.promoted - 1] if last and last.promoted in self.recent else None

    @property
    def champion(self) -> Champion | None:
        """The champion after the last entry."""
        return self.present.champion if self.present else None

    @property
    def file(self) -> Champion | None:
        """The content of the champion's file after the last entry; None if there is no file."""
        return replace(self.champion, entry=len(self.entries)) if self.champion else None

    @property
    def way_back(self) -> list[int]:
        """Numbers of the earlier promotions that rollbacks return to, latest first."""
        stack: list[int] = []
        for entry in self.entries:
            if entry.event == "retirement":
                stack = [number for number in stack if number != entry.promoted]
            else:
                below = stack[: stack.index(entry.promoted)] if entry.promoted in stack else stack
                stack = [*below, entry.promoted]
        run_of = {entry.number: entry.champion.run_id for entry in self.entries}
        champion_run = self.champion.run_id if self.champion else ""
        return [number for number in reversed(stack) if run_of[number] != champion_run]

    @property
    def recent(self) -> list[int]:
        """Numbers of the promotions that are not retired, by their last time as champion, latest first."""
        numbers: list[int] = []
        for entry in self.entries:
            numbers = [number for number in numbers if number != entry.promoted]
            numbers += [entry.promoted] if entry.event != "retirement" else []
        return numbers[::-1]

    @property
    def kept(self) -> list[ChampionEntry]:
        """The promotions whose files are kept: one per run, at most the `keep` of the last entry."""
        promotions = [self.entries[number - 1] for number in self.recent]
        by_run = {entry.champion.run_id: entry for entry in reversed(promotions)}
        keep = self.entries[-1].keep if self.entries else 0
        return [entry for entry in promotions if by_run[entry.champion.run_id] is entry][:keep]


def read_history(folder: Path, target: str) -> History:
    """Read the history of a target; a damaged entry is refused, a line that a kill cut short is a note."""
    path, next_step = _history_file(folder, target), _RESTORE
    if not path.exists():
        return History()
    with refuse_unreadable(path, "a history that harness promote wrote", next_step):
        *whole_lines, rest = path.read_bytes().split(b"\n")
    entries: list[ChampionEntry] = []
    notes: list[str] = []
    for line_no, line in enumerate((*whole_lines, rest) if rest else whole_lines, 1):
        try:
            entries.append(load(ChampionEntry, line))
        except ValueError:
            if not rest and line_no == len(whole_lines):
                found = f"line {line_no}, not a valid entry"
                raise UserError(str(path), found, "what harness promote wrote", next_step) from None
            notes.append(f"{path}: line {line_no} was cut short when a command was killed, and is left out")
    for number, entry in enumerate(entries, 1):
        promotes = 1 <= entry.promoted <= number and entries[entry.promoted - 1].event == "promotion"
        if (entry.number, entry.champion.target) != (number, target) or not promotes:
            found = f"entry {entry.number} of {entry.champion.target} about promotion {entry.promoted}"
            expected = f"entry {number} of {target}, about a promotion before it"
            raise UserError(str(path), found, expected, next_step)
    return History(tuple(entries), tuple(notes))


def read_champion(folder: Path, target: str) -> Champion | None:
    """Read the champion of a target, or None; a file that is behind its history is written again."""
    history = read_history(folder, target)
    champion = history.champion
    if _read_written(folder, target) != history.file:  # another process may be writing it
        store = Store(folder / "runs")
        with suppress(OSError), hold_champions(store):
            champion = _follow(store, target)
    if champion is not None:
        path = champion_file(folder, target)
        with refuse_unreadable(path, "what harness promote wrote", _again(path)):
            Recipe.model_validate(champion.recipe)
    return champion


def _history_file(folder: Path, target: str) -> Path:
    return champion_file(folder, target).with_suffix(".history.jsonl")


def _read_written(folder: Path, target: str) -> Champion | None:
    path = champion_file(folder, target)
    if not path.exists():
        return None
    with refuse_unreadable(path, "what harness promote wrote", _again(path)):
        return load(Champion, path.read_bytes())


_RESTORE = "restore the file, for example by git checkout"


def _again(path: Path) -> str:
    return f"rm {as_argument(str(path))}: its history restores it; without one promote again"


@contextmanager
def hold_champions(store: Store) -> Iterator[None]:
    """Hold the lock that lets one process at a time promote, roll back or retire."""
    from filelock import FileLock

    make_private_folder(store.folder)
    with FileLock(store.folder / "champions.lock", is_singleton=True):  # reentrant
        yield


def record_champion(store: Store, entry: ChampionEntry) -> Path:
    """Append an entry to the history and update the champion's file; the caller holds the lock."""
    folder, target = store.folder.parent, entry.champion.target
    path = _history_file(folder, target)
    if path.exists():
        append_records(store, path, [entry])
    else:
        write_records(store, path, [entry])
    _follow(store, target)
    for inputs in store.folder.glob("inputs/*"):  # so that a copy of the runs is judged against this champion
        kept = inputs / path.relative_to(folder)
        kept.parent.mkdir(parents=True, exist_ok=True)
        fill_cache_file(kept, partial(shutil.copy2, path))
    return champion_file(folder, target)


def _follow(store: Store, target: str) -> Champion | None:
    """Write or remove the champion's file to match its history; changed or lost entries are refused."""
    folder, path = store.folder.parent, champion_file(store.folder.parent, target)
    history, written = read_history(folder, target), _read_written(folder, target)
    number = len(history.entries)
    if written is not None and written.entry > number:
        found = f"{number} entries, where {path.name} follows entry {written.entry}"
        step = f"{_RESTORE}; to give them up, rm {as_argument(str(path))}"
        raise UserError(str(_history_file(folder, target)), found, "all entries", step)
    if written not in (None, history.file, History(history.entries[:-1]).file):
        found = f"a champion other than that of entry {number} of its history"
        raise UserError(str(path), found, "what was promoted last", _again(path))
    if history.file is not None and written != history.file:
        write_record(store, path, history.file)
    elif history.file is None and written is not None:
        path.unlink()
        sync(path.parent)
    return history.champion


def champions(folder: Path) -> list[Champion]:
    """Read the champions of all targets, below the experiment's folder."""
    optional_champions = (read_champion(folder, target) for target in _list_targets(folder))
    return [champion for champion in optional_champions if champion is not None]


def kept_champions(folder: Path) -> list[Champion]:
    """List the champions of all targets whose files are kept, including the present ones."""
    present = champions(folder)  # refuses a file that its history did not write
    histories = (read_history(folder, target) for target in _list_targets(folder))
    return [*present, *(entry.champion for history in histories for entry in history.kept)]


def _list_targets(folder: Path) -> list[str]:
    names = {path.name for path in champion_file(folder, "*").parent.glob("*.json*")}
    return sorted({name.removesuffix(".json").removesuffix(".history.jsonl") for name in names})


def find_first_base(folder: Path, target: str) -> str:
    """Return the digest of the base that the first champion was judged against; empty without a champion."""
    champion = read_champion(folder, target)
    return (champion.first_base or champion.base_digest) if champion else ""
