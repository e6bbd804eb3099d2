"""Time and memory of the command line, of the quickstart and of the hot loops, measured together.

Invariant: times are not asserted, because the machine may be busy; the written page says which goals
were met on which machine.
"""

import json
import statistics
import time
from pathlib import Path

import bench_page
import pytest
from bench_page import Row
from commands import run

from harness import config, data
from harness.models import hub
from harness.models.hardware import Machine, probe
from harness.models.hf import HFCandidate, ModelHost

ROOT = Path(__file__).parents[2]
ITEMS_A_TASK = 32


def arithmetic(passes_per_s: float, machine: Machine) -> str:
    n_parameters = hub.resolve("smollm2-135m").n_parameters
    share = passes_per_s * n_parameters / (machine.gflops * 1e9)
    return f"arithmetic, at {100 * share:.0f} % of the speed of a large matrix product"


def choices(candidate: HFCandidate) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    tasks = [t for suite in config.read_suites(ROOT / "suites") for t in suite.tasks if t.kind == "choice"]
    items = [item for task in tasks for item in data.load_task(task, 0).test[:ITEMS_A_TASK]]
    requests = [(item.messages, f" {choice}") for item in items for choice in item.choices]
    return [candidate.encode(*r, chat_template=False)[:2] for r in requests]


def time_scoring(candidate: HFCandidate, pairs: list) -> float:
    times = []
    for _ in range(2):
        start = time.perf_counter()
        candidate.loglikelihood(pairs)
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.bench
def test_the_quickstart_is_measured_and_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    help_s = statistics.median(run(tmp_path, "--help").wall_s for _ in range(5))
    (tmp_path / "harness.yaml").write_text((ROOT / "harness.yaml").read_text())
    (tmp_path / "suites").symlink_to(ROOT / "suites")
    first, again = run(tmp_path, "compare"), run(tmp_path, "compare")
    facts = json.loads((tmp_path / "reports" / "support.json").read_text())["facts"]
    fit = next(f["training"] for f in facts if f["name"] == "lora")
    trained = (
        f"{fit['wall_s'] / 60:.1f} min train one of four adapters; the rest is mostly generating and scoring"
    )
    memory = f"one process; {fit['peak_memory_gib']:.1f} GiB were reached by the end of training"
    unchanged = f"files, rows and statistics; torch {'was' if again.imported_torch else 'was not'} imported"
    whole = f"`harness compare` from nothing, {len(facts)} candidates"
    speed = fit["tokens_per_s"]
    # Score choices of the general suite with packed shared contexts, and one branch at a time.
    machine = probe()
    host = ModelHost(hub.resolve("smollm2-135m"), machine)
    plain = HFCandidate(host.model, host.tokenizer, host.base.weights_digest, "plain")
    pairs = choices(host.base)
    host.base.loglikelihood(pairs[:8])  # the first call warms up
    n_tokens = sum(len(context) + len(continuation) for context, continuation in pairs)
    packed, alone = n_tokens / time_scoring(host.base, pairs), n_tokens / time_scoring(plain, pairs)
    once = "arithmetic; a shared context counts for each choice, and is computed once"
    rows = [
        Row("`harness --help`, median of 5", help_s, "s", 0.3, "starting Python and importing typer"),
        Row(whole, first.wall_s / 60, "min", 10.0, trained),
        Row("its peak resident memory", first.peak_gb, "GB", 8.0, memory),
        Row("`harness compare` again, unchanged", again.wall_s, "s", 2.0, unchanged),
        Row("training the adapter", speed, "tokens/s", None, arithmetic(4 * speed, probe())),
        Row("scoring choices, packed", packed, "tokens/s", None, once),
        Row("scoring them one at a time", alone, "tokens/s", None, arithmetic(2 * alone, machine)),
        Row(
            "packed against one at a time", packed / alone, "times as fast", None,
            "the context that choices share",
        ),
    ]  # fmt: skip
    assert all(row.measured > 0 for row in rows)
    bench_page.write("Time and memory of the quickstart", rows, probe(), bench_page.stem("quickstart"))
