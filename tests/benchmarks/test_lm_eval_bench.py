"""The same tasks by harness and by lm-eval's own `hf` model in one process: time, answers, share of the peak.

Invariant: both are timed from a task's texts to its log-likelihoods or answers, including tokenising, but
without loading, building prompts and scoring. They alternate, and the faster time of each side counts,
because other work on the machine can only slow them; times are not asserted. `HARNESS_BENCH_SCALE` multiplies
the items of each task (0.01 for a trial of minutes).
"""

import os
import time
from typing import NamedTuple

import bench_page
import numpy as np
import pytest
from bench_page import Row, Table
from lm_eval_mirror import cut_mirror
from peaks import ScoringCounter, forget, peak_gb, peak_gflops, profile_operators, share_row

from harness.evaluation.row_sets import suite_sets
from harness.experiment import standalone
from harness.models.hardware import Machine, probe
from harness.models.hf import HFCandidate
from harness.models.shapes import shape_of
from harness.progress import SilentProgress

SCALE = float(os.environ.get("HARNESS_BENCH_SCALE", "1"))
ROUNDS = 2
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


class Section(NamedTuple):
    """Tasks with the folder, configuration and split of their data; `batch` is lm-eval's batch size."""

    name: str
    tasks: dict[str, tuple[str, str, str]]
    n_items: int
    shots: int | None
    batch: int
    goal: float

    @property
    def items(self) -> int:
        """Items per task, at least two."""
        return max(2, round(self.n_items * SCALE))


ARC_CHALLENGE = ("allenai/ai2_arc", "ARC-Challenge", "test")
ZERO_SHOT = Section(
    "zero-shot multiple choice",
    {
        "piqa": ("baber/piqa", "default", "validation"),
        "arc_easy": ("allenai/ai2_arc", "ARC-Easy", "test"),
        "arc_challenge": ARC_CHALLENGE,
        "winogrande": ("allenai/winogrande", "winogrande_xl", "validation"),
        "openbookqa": ("allenai/openbookqa", "main", "test"),
    },
    n_items=200,
    shots=None,
    batch=16,
    goal=3,
)
ARC_25 = Section(
    "25-shot ARC-challenge", {"arc_challenge": ARC_CHALLENGE}, n_items=20, shots=25, batch=8, goal=6
)
MMLU_5 = Section(
    "5-shot MMLU",
    {f"mmlu_{name}": ("cais/mmlu", name, "test") for name in ("anatomy", "marketing", "us_foreign_policy")},
    n_items=32,
    shots=5,
    batch=8,
    goal=4,
)
GENERATION = Section(
    "generation, gsm8k with its 5 shots", {"gsm8k": ("openai/gsm8k", "main", "test")}, n_items=16, shots=None,
    batch=16, goal=2,
)  # fmt: skip


class Ours(NamedTuple):
    """Our rows by task and document, their seconds, and the counts of scoring."""

    rows: dict
    seconds: float
    counted: ScoringCounter
    memory_gb: float


def ask_lm_eval(section: Section, source, machine: Machine):
    """Let lm-eval ask its own model the same documents; return its samples, seconds and peak memory in GB."""
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM

    class TimingLM(HFLM):
        seconds = 0.0

        def loglikelihood(self, *args, **kwargs):
            return self._time_call(super().loglikelihood, *args, **kwargs)

        def generate_until(self, *args, **kwargs):
            return self._time_call(super().generate_until, *args, **kwargs)

        def _time_call(self, ask, *args, **kwargs):
            start = time.perf_counter()
            result = ask(*args, **kwargs)
            self.seconds += time.perf_counter() - start
            return result

    model = TimingLM(
        pretrained=str(source.path),
        dtype=_DTYPES[machine.precision],
        device=machine.device,
        batch_size=section.batch,
    )
    model.model(torch.ones((1, 64), dtype=torch.long, device=machine.device))  # the first call warms up
    forget(machine.device)
    results = lm_eval.simple_evaluate(
        model=model, tasks=list(section.tasks), num_fewshot=section.shots, bootstrap_iters=0
    )
    return results["samples"], model.seconds, peak_gb(machine.device)


class Agreement(NamedTuple):
    """One score of one task on both sides, and the number of items on which it differs."""

    task: str
    score: str
    n: int
    lm_eval: float
    harness: float
    differ: int

    @property
    def cells(self):
        """The cells of this line: shares in percent."""
        return (self.task, self.score, self.n, f"{self.lm_eval:.1%}", f"{self.harness:.1%}", self.differ)


def agreement(rows, samples):
    """Compare both sides' scores of the same documents."""
    agreements = []
    for task, of_task in rows.items():
        ours = {int(row.example_id.partition("-")[0]): row for row in of_task}
        hashes = {s["doc_id"]: s["doc_hash"][:12] for s in samples[task]}
        assert {i: row.example_id.partition("-")[2] for i, row in ours.items()} == hashes
        for name in next(iter(ours.values())).parts:
            metric, _, filter_name = name.partition(",")
            theirs = {
                s["doc_id"]: float(s[metric])
                for s in samples[task]
                if metric in s and filter_name in ("", s["filter"])
            }
            mine = {i: row.parts[name][0] for i, row in ours.items() if row.parts[name] is not None}
            ids = sorted(theirs.keys() & mine.keys())
            pairs = np.array([(theirs[i], mine[i]) for i in ids])
            agreements.append(
                Agreement(task, name, len(ids), *pairs.mean(axis=0), int((pairs[:, 0] != pairs[:, 1]).sum()))
            )
    return agreements


class SectionResult(NamedTuple):
    """Part of the page for a section."""

    rows: list[Row]
    agreements: list[Agreement]


def measure(section: Section, folder, monkeypatch) -> SectionResult:
    mirror = cut_mirror(folder / "hub", section.tasks, section.items)
    monkeypatch.setenv("HARNESS_DATASETS_DIR", str(mirror))
    # Cached rows are found by file names: a task cut shorter would get those of the previous section.
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "datasets")
    tasks = standalone.tasks_of(list(section.tasks), None, section.shots)
    prepared = standalone.prepare_model("smollm2-135m", tasks, folder / "runs", SilentProgress())
    machine, source = prepared.session.machine, prepared.session.source
    monkeypatch.chdir(mirror)  # so lm-eval finds a folder instead of a name on the hub
    shares, rounds = [], []
    for _ in range(ROUNDS):
        # Ask every block of every task, without storing anything.
        session = prepared.session
        candidate = ScoringCounter(session.host(session.source).base)
        forget(session.machine.device)
        rows = {}
        for row_set in suite_sets(session, prepared.weights):
            job = row_set.job()
            rows[job.task.name] = [
                row for i in range(job.n_blocks) for row in row_set.measured.evaluate(candidate, job, i)
            ]
        seconds = sum(row.compute_s for task_rows in rows.values() for row in task_rows)
        ours = Ours(rows, seconds, candidate, peak_gb(session.machine.device))
        shares = shares or peak_rows(section, ours.counted, prepared)
        prepared.session.unload()  # so that each side has the whole memory
        rounds.append((ours, *ask_lm_eval(section, source, machine)))
    ours = min((ours for ours, *_ in rounds), key=lambda side: side.seconds)
    samples, theirs_s, theirs_gb = min((theirs for _, *theirs in rounds), key=lambda side: side[1])
    times = (
        f"lm-eval {theirs_s:.1f} s in batches of {section.batch} and {theirs_gb:.1f} GB at the peak, "
        f"harness {ours.seconds:.1f} s and {ours.memory_gb:.1f} GB"
    )
    n_items = (
        f"{len(section.tasks)} × {section.items} items"
        if len(section.tasks) > 1
        else f"{section.items} items"
    )
    ratio = Row(
        f"{section.name}, {n_items}", theirs_s / ours.seconds, "times as fast", section.goal, times,
        at_least=True,
    )  # fmt: skip
    return SectionResult([ratio, *shares], agreement(ours.rows, samples))


def peak_rows(section: Section, counted: ScoringCounter, prepared) -> list[Row]:
    """Return the share of the fastest matrix product that scoring reached; empty if nothing was scored."""
    if not counted.n_tokens:
        return []
    source, machine = prepared.session.source, prepared.session.machine
    base = prepared.session.host(source).base
    shape = shape_of(base.model.config.to_dict(), source.n_parameters)
    new = HFCandidate(base.model, base.tokenizer, "profiled", "packed")  # has read no shots yet
    sets = suite_sets(prepared.session, prepared.weights)
    profiled = profile_operators(lambda: [s.measured.evaluate(new, s.job(), 0) for s in sets])
    return [share_row(section.name, counted, shape, peak_gflops(machine), profiled)]


@pytest.fixture(scope="module")
def page():
    """Collect the sections' results; the page is written once all are measured."""
    results: dict[str, SectionResult] = {}
    yield results
    if len(results) == len(SECTIONS):
        lines = tuple(a.cells for m in results.values() for a in m.agreements)
        sentence = "The same documents on both sides; how many of their scores differ:"
        table = Table(sentence, ("task", "score", "items", "lm-eval", "harness", "differ"), lines)
        rows = [row for m in results.values() for row in m.rows]
        bench_page.write(
            "Speed against lm-eval's own model", rows, probe(), bench_page.stem("lm_eval"), [table]
        )


SECTIONS = (ZERO_SHOT, ARC_25, MMLU_5, GENERATION)


@pytest.mark.bench
@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.name.replace(" ", "-"))
def test_a_task_is_asked_by_both_and_the_times_are_written(section, page, tmp_path, monkeypatch):
    result = measure(section, tmp_path, monkeypatch)
    page[section.name] = result
    assert all(row.measured > 0 for row in result.rows)
    # bf16 flips near-ties; more than a tenth would mean a different computation.
    assert all(a.differ <= max(2, a.n / 10) for a in result.agreements), result.agreements
