"""Simulated nights: a world whose fine-tune is asked every night on a prepared session.

Invariant: what is answered depends on the night, the item and the rates alone.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import worlds
from worlds import Sizes, Truth

from harness import experiment
from harness.lifecycle import nightly
from harness.lifecycle.nightly_state import home
from harness.store import Store

FIRST = date(2026, 3, 1)
TRUTH = Truth(
    {"zero_shot": {"of": 40}, "few_shot": {"of": 40}, "rag": {"of": 40}, "tuned": {"of": 80}}, general=70
)
WATCHED = ["nightly.candidates=[lora]"]
COUNTER = "more_targets: [{name: counter, data: {test: suites/counter.jsonl}, max_new_tokens: 4}]\n"


@dataclass(frozen=True)
class Rates:
    """Shares of all items, in each night anew: answered worse and better than in the reference.

    `counter_lost` is that of a further target, where there is one.
    """

    lost: float = 0.05
    counter_lost: float = 0.05
    gained: float = 0.05
    general_lost: float = 0.05
    base_moves: float = 0.0


STILL = Rates(lost=0, gained=0, general_lost=0, counter_lost=0)


class Nightly(worlds.Oracle):
    """A rule that answers a few items otherwise each night, as many as the rates say."""

    def __init__(self, truth, weights_digest, tuned, day, rates, asked) -> None:
        super().__init__(truth, weights_digest, tuned)
        self.day, self.rates, self.asked = day, rates, asked

    def generate(self, prompts, limits):
        for prompt in prompts:
            self.asked(prompt)
        return super().generate(prompts, limits)

    def _output(self, messages):
        found = super()._output(messages)
        general = " - " in messages[-1]["content"]
        good = found.text == worlds.GOOD
        target = self.truth.target["tuned" if self.tuned else "zero_shot"]["of"]
        share = (self.truth.general if general else target) / 100
        lost, gained = (self.rates.base_moves / 2,) * 2
        if self.tuned:
            on_target = (
                self.rates.counter_lost if "What is counter " in messages[-1]["content"] else self.rates.lost
            )
            lost = self.rates.general_lost if general else on_target
            gained = self.rates.gained
        name = repr((self.day, messages[-1]["content"], self.tuned)).encode()
        drawn = int(hashlib.sha256(name).hexdigest()[:12], 16) / 16**12
        if drawn >= (lost / share if good else gained / (1 - share)):
            return found
        return worlds.Output(worlds.BAD if good else worlds.GOOD, compute_s=found.compute_s)


class NightlyHost(worlds.OracleHost):
    """What holds the base of a world for one night."""

    def __init__(self, truth, source, day, rates, asked) -> None:
        super().__init__(truth, source)
        self._what = (day, rates, asked)
        self.base = Nightly(truth, source.weights_digest, False, *self._what)

    @contextmanager
    def use_adapter(self, folder: Path, weights_digest: str) -> Iterator[Nightly]:
        yield Nightly(self._truth, weights_digest, True, *self._what)


def world(folder: Path, *, test: int = 200, general: int = 60, seeds: tuple[int, ...] = (0,)) -> Path:
    worlds.report(folder, TRUTH, Sizes(test=test, general=general), candidates=["prompt", "lora"])
    if seeds != (0,):
        session, loaded = worlds.open_world(
            folder / "harness.yaml", TRUTH, [f"seeds={list(seeds)}"], ["prompt", "lora"]
        )
        for seed in seeds:
            worlds.write_training(session, session.candidates["lora"], seed)
        experiment.run_all(session, loaded)
    return folder / "harness.yaml"


def add_counter(path: Path, n: int = 200) -> None:
    """Declare a further target, of which the stored runs hold no rows yet."""
    asked = [
        {"id": f"counter-{i}", "prompt": f"What is counter of {i} ?", "reference": worlds.GOOD}
        for i in range(n)
    ]
    rows = "".join(json.dumps(row) + "\n" for row in asked)
    (path.parent / "suites" / "counter.jsonl").write_text(rows)
    path.write_text(path.read_text() + COUNTER)


def folder_of(path: Path) -> Path:
    return home(Store(path.parent / "runs"), "world")


def line_of(found: nightly.NightReport, name: str = "lora"):
    return next(line for line in found.lines if line.name == name)


def compare_again(path: Path) -> None:
    """Let the candidates answer what they have not answered yet."""
    session, loaded = worlds.open_world(path, TRUTH, (), ["prompt", "lora"])
    experiment.run_all(session, loaded)


class Calendar:
    """One session on which night after night is run."""

    def __init__(self, path: Path, overrides=(), salt: int = 0) -> None:
        self.path, self.salt = path, salt
        self.session, self.loaded = worlds.open_world(path, TRUTH, [*WATCHED, *overrides])
        self.asked: list[tuple[int, ...]] = []

    def night(self, n: int, rates: Rates = Rates(), asked=None, publish=None) -> nightly.NightReport:
        """Run night n, from 1 on; `asked` hears of every prompt before it is answered."""
        day = FIRST + timedelta(days=n - 1)
        hears = asked or self.asked.append
        host = NightlyHost(TRUTH, self.session.source, (self.salt, day), rates, hears)
        self.session.slot.host = host
        return nightly.run_prepared(self.session, self.loaded, day, publish)
