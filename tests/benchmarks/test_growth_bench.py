"""How the time of scoring grows with items, choices, shots and adapters, by harness and by lm-eval's own `hf` model.

Invariant: both are timed in one process from an item's texts to its log-likelihoods, tokenising included;
loading is counted for adapters alone, where lm-eval loads the base with each of them. Nothing is asserted of a
time. `HARNESS_BENCH_SCALE` multiplies the items (0.1 for a trial of half a minute).
"""

import json
import os
import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import bench_page
import pytest
from bench_page import Row, Table
from peaks import forget, peak_gb

from harness.evaluation import EvaluationJob, evaluate_block
from harness.metrics import load_metrics
from harness.models.devices import load_base
from harness.models.hardware import Machine, probe
from harness.models.hf import ModelHost
from harness.models.hub import ModelSource, resolve
from harness.models.weight_files import adapter_digest
from harness.records import Example, RowsIdentity
from harness.spec import Task, TaskData
from harness.training.low_rank_adapters import LoraParams, lora_config

SCALE = float(os.environ.get("HARNESS_BENCH_SCALE", "1"))
ROWS = Path(__file__).parents[2] / "suites" / "general" / "world_facts.jsonl"
BATCH = 16  # of lm-eval
N_ITEMS, N_CHOICES = 50, 4  # where another number is varied
ITEMS, CHOICES, SHOTS, N_ADAPTERS = (25, 50, 100, 200), (2, 4, 8, 16), (0, 1, 2, 4, 8), 4
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
TASK = Task(name="growth", kind="choice", data=TaskData(), metrics=("accuracy",), chat_template=False)


def items(n: int, n_choices: int = N_CHOICES, n_shots: int = 0) -> tuple[Example, ...]:
    """Make items of the general suite's rows: other rows' answers as further choices, solved rows as shots."""
    rows = [json.loads(line) for line in ROWS.read_text("utf-8").splitlines()]
    draw = random.Random(0)
    draw.shuffle(rows)
    answers = sorted({row["reference"] for row in rows})
    out = []
    for i in range(max(2, round(n * SCALE))):
        row, shots = rows[i], [rows[-1 - (i + j) % len(rows)] for j in range(n_shots)]
        others = draw.sample([a for a in answers if a != row["reference"]], n_choices - 1)
        solved = [f"{shot['prompt']} {shot['reference']}" for shot in shots]
        content = "\n\n".join([*solved, row["prompt"]])
        messages = ({"role": "user", "content": content},)
        out.append(Example(row["id"], messages, (row["reference"],), (row["reference"], *others)))
    return tuple(out)


class ArmChoices(NamedTuple):
    """The seconds that items took, and the place of each item's likeliest choice."""

    seconds: float
    best: list[int]


def ask_ours(candidate, examples: Sequence[Example]) -> ArmChoices:
    """Score the choices as an experiment does, block by block, without storing anything."""
    identity = RowsIdentity("w", "t", TASK.name, "v", "test", "p", "rank", "p", "e", "l", "d", "s")
    job = EvaluationJob(TASK, "capability", "test", tuple(examples), load_metrics(TASK), "generate", identity)
    start = time.perf_counter()
    rows = [row for i in range(job.n_blocks) for row in evaluate_block(candidate, job, i)]
    seconds = time.perf_counter() - start
    return ArmChoices(seconds, [e.choices.index(row.text) for e, row in zip(examples, rows, strict=True)])


def ask_lm_eval(model, examples: Sequence[Example]) -> ArmChoices:
    """Let lm-eval's model score the same contexts and continuations."""
    from lm_eval.api.instance import Instance

    requests = [
        Instance("loglikelihood", {}, (e.messages[-1]["content"], f" {choice}"), i)
        for e in examples
        for i, choice in enumerate(e.choices)
    ]
    start = time.perf_counter()
    said = iter(model.loglikelihood(requests, disable_tqdm=True))
    logprobs = [[next(said)[0] for _ in e.choices] for e in examples]
    return ArmChoices(
        time.perf_counter() - start, [max(range(len(of)), key=of.__getitem__) for of in logprobs]
    )


def lm_eval_model(source: ModelSource, machine: Machine, adapter: Path | None = None):
    """Load lm-eval's own model, with an adapter where one is named."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=str(source.path), dtype=_DTYPES[machine.precision], device=machine.device,
        batch_size=BATCH, peft=str(adapter) if adapter else None,
    )  # fmt: skip


class Step(NamedTuple):
    """So many things of what is varied, and what either side took for them."""

    n: int
    ours: ArmChoices
    theirs: ArmChoices


class Growth(NamedTuple):
    """One number that is varied, what stays the same, and the steps it was varied in."""

    what: str
    fixed: str
    steps: tuple[Step, ...]

    @property
    def differ(self) -> float:
        """The share of items whose likeliest choice differs between both sides."""
        pairs = [p for s in self.steps for p in zip(s.ours.best, s.theirs.best, strict=True)]
        return sum(a != b for a, b in pairs) / len(pairs)


def vary_adapters(source: ModelSource, machine: Machine, folder: Path) -> Growth:
    """Ask a base and one adapter after the other the same items, loading included."""
    folders = [write_adapter(source, machine, folder / str(i)) for i in range(N_ADAPTERS)]
    ours, theirs = [], []
    start = time.perf_counter()
    host = ModelHost(source, machine)
    loaded_s = time.perf_counter() - start
    for adapter in (None, *folders):
        start = time.perf_counter()
        arm = (
            host.use_adapter(adapter, adapter_digest(adapter, source.weights_digest))
            if adapter
            else nullcontext(host.base)
        )
        with arm as candidate:
            best = ask_ours(candidate, items(N_ITEMS)).best
        ours.append(ArmChoices(time.perf_counter() - start + loaded_s * (adapter is None), best))
    for adapter in (None, *folders):
        start = time.perf_counter()
        best = ask_lm_eval(lm_eval_model(source, machine, adapter), items(N_ITEMS)).best
        theirs.append(ArmChoices(time.perf_counter() - start, best))
    steps = tuple(
        Step(n, *both)
        for n, both in enumerate(zip(accumulate_seconds(ours), accumulate_seconds(theirs), strict=True))
    )
    return Growth("adapters beside the base", f"{N_ITEMS} items, {N_CHOICES} choices, with loading", steps)


def accumulate_seconds(arms: Sequence[ArmChoices]) -> list[ArmChoices]:
    """Add to each arm's seconds those of the arms before it."""
    return [ArmChoices(s, arm.best) for s, arm in zip(accumulate(a.seconds for a in arms), arms, strict=True)]


def write_adapter(source: ModelSource, machine: Machine, folder: Path) -> Path:
    """Write an adapter that was not trained yet: what it takes does not depend on its numbers."""
    from peft import get_peft_model

    model, _ = load_base(source, machine)
    get_peft_model(model, lora_config(LoraParams())).save_pretrained(str(folder))
    return folder


def row_of(growth: Growth) -> Row:
    """Compare both sides at the largest number."""
    n, ours, theirs = growth.steps[-1]
    times = f"lm-eval {theirs.seconds:.1f} s in batches of {BATCH}, harness {ours.seconds:.1f} s"
    what = f"{growth.what}: {n} ({growth.fixed})"
    return Row(what, theirs.seconds / ours.seconds, "times as fast", None, times)


def table_of(growth: Growth) -> Table:
    lines = tuple(
        (n, f"{ours.seconds:.2f}", f"{theirs.seconds:.2f}", f"{theirs.seconds / ours.seconds:.1f}")
        for n, ours, theirs in growth.steps
    )
    columns = (growth.what, "harness, s", "lm-eval, s", "times as fast")
    return Table(f"By {growth.what} ({growth.fixed}):", columns, lines)


@pytest.mark.bench
def test_growth_is_measured_on_both_sides_and_written(tmp_path):
    machine, source = probe(), resolve("smollm2-135m")
    forget(machine.device)
    half = N_ITEMS // 2
    varied = (
        ("items", f"{N_CHOICES} choices, no shots", {n: items(n) for n in ITEMS}),
        ("choices an item", f"{N_ITEMS} items, no shots", {n: items(N_ITEMS, n) for n in CHOICES}),
        ("shots", f"{half} items, {N_CHOICES} choices", {n: items(half, n_shots=n) for n in SHOTS}),
    )
    host, model = ModelHost(source, machine), lm_eval_model(source, machine)
    for ask, who in ((ask_ours, host.base), (ask_lm_eval, model)):
        ask(who, items(2))  # the first call warms up
    found = [
        *(
            Growth(
                what,
                fixed,
                tuple(Step(n, ask_ours(host.base, of), ask_lm_eval(model, of)) for n, of in by.items()),
            )
            for what, fixed, by in varied
        ),
        vary_adapters(source, machine, tmp_path),
    ]
    held = "both sides in one process, three models at the most"
    memory = Row("peak memory", peak_gb(machine.device), "GB", None, held)
    rows, tables = [*map(row_of, found), memory], list(map(table_of, found))
    bench_page.write("How the time of scoring grows", rows, machine, bench_page.stem("growth"), tables)
    # bf16 turns near-ties over; more than a tenth would be another computation.
    assert all(growth.differ <= 0.1 for growth in found), [(g.what, g.differ) for g in found]
