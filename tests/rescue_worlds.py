"""Worlds with a known truth for every version of a fine-tune, so that the right rescue is known.

Invariant: only answers are made up; trials are found, stored, judged and split by the real code. A scaled
adapter is really made; a training is replaced by the files that it leaves.
"""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import fake_adapter
import worlds
from worlds import BAD, GOOD, PER_ANSWER_S, Oracle, OracleHost, Sizes, Truth, is_right

from harness import config, experiment, plugins
from harness.analysis.admission import split
from harness.experiment import Scope, prepare_session, rescue
from harness.experiment.candidate_weights import Fit, find_stored_weights
from harness.models.hub import ModelSource
from harness.progress import SilentProgress
from harness.records import Output, SampleResult
from harness.training import TRACKED

BASE = Truth(
    {"zero_shot": {"behaviour": 20}, "few_shot": {"behaviour": 40}, "rag": {"behaviour": 20}, "tuned": {}}
)
ALPHA = 32.0
AS_IT_IS = "as it is"
_LAID_DOWN = ("merge",)  # steps that compute with a base, which has no weights here
USUAL = Sizes()
WHOLE = Scope()


class Version(NamedTuple):
    """Truth of one version: percent right on the target, general points lost, and the half that loses them.

    `more` holds the percent right on further targets, by task, if it differs from the first; `failed` names
    the items that get no answer.
    """

    target: int = 90
    lost: int = 0
    lost_in: str = "both"
    more: tuple[tuple[str, int], ...] = ()
    failed: tuple[str, ...] = ()


COLLAPSED = Version(lost=50)


class VersionOracle(Oracle):
    """A version that answers by its truth."""

    def __init__(self, version: Version, weights_digest: str, half_of) -> None:
        super().__init__(BASE, weights_digest, tuned=True)
        self.version, self.half_of = version, half_of

    def _output(self, messages: list[dict]) -> Output:
        task, segment, number = messages[-1]["content"].rpartition("What is ")[2].split()[:3]
        if f"{task} {segment} {number}" in self.version.failed:
            return Output("", "error", error="the server hung up")
        if segment == "-":
            base = is_right(int(number), BASE.general)
            hit = self.version.lost_in in ("both", self.half_of[f"{task}---{number}"])
            answered = base and not (hit and is_right(int(number), self.version.lost))
        else:
            answered = is_right(int(number), dict(self.version.more).get(task, self.version.target))
        return Output(GOOD if answered else BAD, compute_s=PER_ANSWER_S["tuned"])


class VersionHost(OracleHost):
    """A base by rule, and adapters whose folder names their version."""

    def __init__(self, versions: dict[str, Version], source: ModelSource, half_of) -> None:
        super().__init__(BASE, source)
        self._versions, self._half_of = versions, half_of
        self.opened: list[str] = []

    @contextmanager
    def use_adapter(self, folder: Path, weights_digest: str) -> Iterator[VersionOracle]:
        adapter_config = json.loads((folder / "adapter_config.json").read_text())
        scale = adapter_config["lora_alpha"] / ALPHA
        mark = adapter_config["made"] if scale == 1 else f"scale={scale:g}"
        self.opened.append(mark)
        if mark not in self._versions:
            raise RuntimeError(f"no version {mark} in this world")
        yield VersionOracle(self._versions[mark], weights_digest, self._half_of)


def lay_down(session, candidate, mark: str, seed: int = 0) -> None:
    """Write what a finished training of an adapter leaves; if tracked, every tenth step's weights too."""
    init = find_stored_weights(session, candidate.init, seed) if candidate.init else None
    merges = [find_stored_weights(session, name, seed) for name in candidate.merges]
    folder = Fit(session, candidate, seed).folder(init, merges=merges)
    settings = {"peft_type": "LORA", "lora_alpha": ALPHA, "r": 16, "made": mark}
    training = {"wall_s": 600.0, "loss": [[1, 1.0]]}
    fake_adapter.lay_down(folder, session.source.weights_digest, settings, training)
    for point in range(candidate.source.track.points if candidate.source.track else 0):
        step = f"step-{10 * (point + 1)}"
        step_settings = {**settings, "made": step}
        fake_adapter.lay_down(folder / TRACKED / step, session.source.weights_digest, step_settings, {})


class World(NamedTuple):
    """A finished experiment, with all that a rescue of a candidate needs."""

    path: Path
    session: object
    loaded: object
    report: object
    host: VersionHost

    def prepare(self, name: str = "lora"):
        """Prepare a rescue, and write all versions that it may train or merge."""
        ready = rescue.prepare(self.session, self.loaded.selected, name)
        for trial in ready.schedule.trials:
            if plugins.method(trial.source.method).trains or trial.step in _LAID_DOWN:
                lay_down(ready.session, ready.session.candidates[trial.name], trial.name.partition("+")[2])
        return ready

    def rescue(self, name: str = "lora"):
        return rescue.run(self.prepare(name))


def world(
    folder: Path, versions: dict[str, Version], *, sizes: Sizes = USUAL, extra: str = "", overrides=()
) -> World:
    """Write a world, run its experiment and return it; the version "as it is" is to be rescued."""
    # A finished world with the same version and settings is copied.
    finished = _finish_world(versions.get(AS_IT_IS, COLLAPSED), sizes, extra, tuple(overrides))
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    return open_world(folder / "harness.yaml", versions, overrides)


@cache
def _finish_world(as_it_is: Version, sizes: Sizes, extra: str, overrides: tuple[str, ...]) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="rescue-world-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    open_world(write(folder, sizes, extra, worlds.LEAN), {AS_IT_IS: as_it_is}, overrides)
    return folder


def write(folder: Path, sizes: Sizes = USUAL, extra: str = "", written: str = worlds.CANDIDATES) -> Path:
    """Write the files of a world, with `extra` lines of harness.yaml; return its path."""
    path = worlds.write(folder, BASE, sizes, written)
    config_file = json.loads((folder / "model" / "config.json").read_text())
    shape = {
        "num_attention_heads": 2, "hidden_size": 8, "num_hidden_layers": 6, "intermediate_size": 16,
        "vocab_size": 32,
    }  # fmt: skip
    (folder / "model" / "config.json").write_text(json.dumps({**config_file, **shape}))
    path.write_text(path.read_text() + extra)
    return path


def open_world(path: Path, versions: dict[str, Version], overrides=(), scope: Scope = WHOLE) -> World:
    """Open a written world, run the missing parts of its experiment, and return it."""
    loaded = config.load(path, overrides)
    session = prepare_session(loaded, scope, SilentProgress())
    half_of = split({m.task.name: items_as_rows(m) for m in session.suites}, 0).half_of
    session.slot.host = host = VersionHost({AS_IT_IS: COLLAPSED, **versions}, session.source, half_of)
    for name in loaded.selected:
        candidate = session.candidates[name]
        if candidate.source.method == "lora":
            for fold_session, seed in product((session, *session.in_folds()), candidate.seeds):
                lay_down(fold_session, candidate, AS_IT_IS, seed)
    result = experiment.run_all(session, loaded, scope if scope.fewer else Scope())
    return World(path, session, loaded, result, host)


def items_as_rows(measured) -> list[SampleResult]:
    """Make rows from the items of a task, with no content but the names."""
    return [
        SampleResult(measured.task.name, "test", e.id, 0, "ok", "", "", (), {}, cluster=e.cluster)
        for e in measured.items.test
    ]
