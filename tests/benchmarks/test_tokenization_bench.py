"""Tokenising of a thousand multiple-choice items: text by text, a block in one call, and ahead of the device.

Invariant: all ways give the same token ids, which is asserted; nothing is asserted of a time, because the machine
may be busy. The best of several rounds counts, in turn, so that other work disturbs each way alike.
"""

import json
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import bench_page
import pytest
from bench_page import Row, Table
from test_growth_bench import ROWS, TASK

from harness.evaluation import EncodedItem, EvaluationJob, encode_block, evaluate_block
from harness.evaluation.runner import encode_blocks
from harness.metrics import load_metrics
from harness.models.hardware import probe
from harness.models.hf import ModelHost
from harness.models.hub import resolve
from harness.records import BLOCK, Encoded, Example, RowsIdentity

SCALE = float(os.environ.get("HARNESS_BENCH_SCALE", "1"))
N_ITEMS, N_CHOICES, ROUNDS = max(8, round(1000 * SCALE)), 4, 2


def text_by_text(candidate, job: EvaluationJob, index: int) -> list[EncodedItem]:
    """Tokenise a block as it was before: each choice's prompt again, each text in a call of its own."""
    tokenizer, out = candidate.tokenizer, []

    def ids(text: str, *, special: bool = True) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=special)["input_ids"])

    for example in job.examples[index * BLOCK : (index + 1) * BLOCK]:
        text = example.messages[-1]["content"]
        scored = []
        for choice in example.choices:
            context, whole = ids(text), ids(f"{text} {choice}")
            merged = whole[: len(context)] != context
            tail = ids(f" {choice}", special=False) if merged else whole[len(context) :]
            scored.append(Encoded(context, tail, merged))
        out.append(EncodedItem(Encoded(ids(text)), tuple(scored)))
    return out


class RoundTimes(NamedTuple):
    """Seconds of the whole, and those of them for which the main thread had no token ids."""

    whole_s: float
    waited_s: float


def evaluate(candidate, job: EvaluationJob, encode: Callable, *, ahead: bool) -> RoundTimes:
    start, waited_s = time.perf_counter(), 0.0
    begun = start
    for index, encoded in encode_blocks(
        lambda i: encode(candidate, job, i), range(job.n_blocks), ahead=ahead
    ):
        waited_s += time.perf_counter() - begun
        evaluate_block(candidate, job, index, encoded)
        begun = time.perf_counter()
    return RoundTimes(time.perf_counter() - start, waited_s)


def tokenise(candidate, job: EvaluationJob, encode: Callable) -> tuple[float, list[EncodedItem]]:
    start = time.perf_counter()
    found = [item for i in range(job.n_blocks) for item in encode(candidate, job, i)]
    return time.perf_counter() - start, found


def job_of(n_shots: int) -> EvaluationJob:
    """Lay out the items of the general suite's rows, over and over, each behind as many solved ones."""
    rows = [json.loads(line) for line in ROWS.read_text("utf-8").splitlines()]
    answers = sorted({row["reference"] for row in rows})
    examples = []
    for i in range(N_ITEMS):
        row, shots = rows[i % len(rows)], [rows[-1 - (i + j) % len(rows)] for j in range(n_shots)]
        others = [a for a in answers if a != row["reference"]][i % 40 :][: N_CHOICES - 1]
        solved = [f"{shot['prompt']} {shot['reference']}" for shot in shots]
        content = "\n\n".join([*solved, f"{i}. {row['prompt']}"])
        choices = (row["reference"], *others)
        examples.append(Example(str(i), ({"role": "user", "content": content},), choices[:1], choices))
    identity = RowsIdentity("w", "t", TASK.name, "v", "test", "p", "rank", "p", "e", "l", "d", "s")
    return EvaluationJob(
        TASK, "capability", "test", tuple(examples), load_metrics(TASK), "generate", identity
    )


def measure(candidate, job: EvaluationJob, name: str) -> tuple[list[Row], list[tuple]]:
    alone: dict[str, list[float]] = {"text by text": [], "a block in one call": []}
    ways = {"text by text": (text_by_text, False), "a block in one call": (encode_block, False)}
    ways["a block in one call, ahead in a thread"] = (encode_block, True)
    whole: dict[str, list[RoundTimes]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        found = {way: tokenise(candidate, job, ways[way][0]) for way in alone}
        ids, same = (of for _, of in found.values())
        assert ids == same
        for way, (seconds, _) in found.items():
            alone[way].append(seconds)
        for way, (encode, ahead) in ways.items():
            whole[way].append(evaluate(candidate, job, encode, ahead=ahead))
    before, after = map(min, alone.values())
    n_tokens = sum(len(one.context) + len(one.continuation) for item in ids for one in item.scored)
    n_items = len(job.examples)
    said = f"{before:.2f} s text by text, {after:.2f} s now"
    rows = [
        Row(f"{name}: tokenising", before / after, "times as fast", None, said),
        Row(f"{name}: items", n_items / after, "a second", None, f"{n_items / before:,.0f} text by text"),
        Row(f"{name}: tokens", n_tokens / after, "a second", None, f"{n_tokens / before:,.0f} text by text"),
    ]
    lines = []
    for way, rounds in whole.items():
        took = min(rounds, key=lambda one: one.whole_s)
        cells = (f"{took.whole_s:.2f}", f"{took.waited_s:.2f}", f"{100 * took.waited_s / took.whole_s:.0f} %")
        lines.append((name, way, *cells))
    return rows, lines


@pytest.mark.bench
def test_a_block_is_tokenised_in_one_call_ahead_of_the_device(tiny):
    machine = probe("cpu", "fp32")
    candidate = ModelHost(resolve(str(tiny)), machine).base
    measured = [
        measure(candidate, job_of(n_shots), f"{N_ITEMS:,} items of {N_CHOICES} choices, {n_shots} shots")
        for n_shots in (0, 5)
    ]
    table = Table(
        f"The whole evaluation by the tiny model, whose own time is next to nothing, the best of {ROUNDS} rounds. A thread ahead is used "
        "where another device computes, or an endpoint; here it shares the processors:",
        ("items", "way", "seconds", "of them the main thread has no token ids", "share"),
        tuple(line for _, lines in measured for line in lines),
    )
    rows = [row for found, _ in measured for row in found]
    bench_page.write("Tokenising", rows, machine, bench_page.stem("tokenization"), (table,))
    assert all(row.measured > 0 for row in rows)
