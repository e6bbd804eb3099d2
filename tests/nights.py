"""Simulated nights: a world whose fine-tune answers every night on a prepared session.

Invariant: answers depend only on the night, the item and the rates.
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
from harness.evaluation.session import EngineSlot
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
    """Shares of all items, drawn each night, that are answered worse or better than in the reference.

    `counter_lost` is the share lost on a further target, if there is one.
    """

    lost: float = 0.05
    counter_lost: float = 0.05
    gained: float = 0.05
    general_lost: float = 0.05
    base_moves: float = 0.0


STILL = Rates(lost=0, gained=0, general_lost=0, counter_lost=0)


class Nightly(worlds.Oracle):
    """A rule that changes the answers to a few items each night, according to the rates."""

    def __init__(self, truth, weights_digest, tuned, day, rates, on_prompt) -> None:
        super().__init__(truth, weights_digest, tuned)
        self.day, self.rates, self.asked = day, rates, on_prompt

    def generate(self, prompts, limits):
        for prompt in prompts:
            self.asked(prompt)
        return super().generate(prompts, limits)

    def _output(self, messages):
        output = super()._output(messages)
        general = " - " in messages[-1]["content"]
        good = output.text == worlds.GOOD
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
        number = int(hashlib.sha256(name).hexdigest()[:12], 16) / 16**12
        if number >= (lost / share if good else gained / (1 - share)):
            return output
        return worlds.Output(worlds.BAD if good else worlds.GOOD, compute_s=output.compute_s)


class NightlyHost(worlds.OracleHost):
    """Host of a world's base for one night."""

    def __init__(self, truth, source, day, rates, on_prompt) -> None:
        super().__init__(truth, source)
        self._what = (day, rates, on_prompt)
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
    """Declare a further target, without rows in the stored runs."""
    questions = [
        {"id": f"counter-{i}", "prompt": f"What is counter of {i} ?", "reference": worlds.GOOD}
        for i in range(n)
    ]
    rows = "".join(json.dumps(row) + "\n" for row in questions)
    (path.parent / "suites" / "counter.jsonl").write_text(rows)
    path.write_text(path.read_text() + COUNTER)


def folder_of(path: Path) -> Path:
    return home(Store(path.parent / "runs"), "world")


def line_of(night_report: nightly.NightReport, name: str = "lora"):
    return next(line for line in night_report.lines if line.name == name)


def compare_again(path: Path) -> None:
    """Let the candidates answer the items that they have not answered yet."""
    session, loaded = worlds.open_world(path, TRUTH, (), ["prompt", "lora"])
    experiment.run_all(session, loaded)


class Calendar:
    """Nights that are run in sequence, and the session and experiment of their file."""

    def __init__(self, path: Path, overrides=(), salt: int = 0) -> None:
        self.path, self.salt, self.overrides = path, salt, [*WATCHED, *overrides]
        self.session, self.loaded = worlds.open_world(path, TRUTH, self.overrides)
        self.asked: list[tuple[int, ...]] = []

    def night(self, n: int, rates: Rates = Rates(), asked=None, publish=None) -> nightly.NightReport:
        """Run night n, counted from 1; `asked` is called with every prompt before it is answered."""
        day = FIRST + timedelta(days=n - 1)
        on_prompt = asked or self.asked.append
        host = NightlyHost(TRUTH, self.session.source, (self.salt, day), rates, on_prompt)
        slot = EngineSlot(host)
        return nightly.run_night(self.path, self.overrides, night=day, publish=publish, slot=slot)
