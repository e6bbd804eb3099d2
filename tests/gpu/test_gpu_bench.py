"""Scoring, generation, training and memory of a model of 1 to 8 billion random parameters on a GPU, as ratios.

Invariant: nothing is asserted of a time; each figure is a ratio of two that one process measured. Without a
GPU a tiny model goes the same way on the CPU, so that the benchmark is known to run.
"""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import bench_page
import beside_lm_eval
import pytest
import random_llama
import training_speed
from bench_page import Row, Table
from beside_lm_eval import CHOICES, QUESTIONS, Section
from never_run import NEVER_RUN
from random_llama import RandomModel
from the_gpu import gpu
from training_speed import Recipe

from harness.models import hub
from harness.models.hardware import Machine
from harness.models.hf import ModelHost
from harness.training import LowRankParams

SCALE = float(os.environ.get("HARNESS_BENCH_SCALE", "1"))
CPU = Machine("cpu", "CPU", "fp32", 1.0)


class Plan(NamedTuple):
    """How much is measured; `batches` are lm-eval's sizes to try, `attentions` those to train with."""

    sections: tuple[Section, ...]
    recipe: Recipe
    batches: tuple[int, ...]
    attentions: tuple[str, ...]


def full_plan() -> Plan:
    """Return what a GPU is asked, FlashAttention-2 where it is installed."""
    from transformers.utils import is_flash_attn_2_available

    params = LowRankParams(r=16, learning_rate=2e-4, num_train_epochs=1, per_device_train_batch_size=8)
    flash = ("flash_attention_2",) if is_flash_attn_2_available() else ()
    return Plan(
        (
            Section("zero-shot multiple choice", CHOICES, max(4, round(160 * SCALE)), 0, 0, 3),
            Section("25-shot multiple choice", CHOICES[:2], max(4, round(48 * SCALE)), 25, 0, 6),
            Section("generation behind 5 shots", (QUESTIONS,), max(4, round(128 * SCALE)), 5, 128, 2),
        ),
        Recipe(max(16, round(320 * SCALE)), 12, params),
        (4, 16, 64),
        ("sdpa", *flash),
    )


def small_plan() -> Plan:
    """Return what a tiny model on a CPU is asked; its second attention stands for FlashAttention-2."""
    params = LowRankParams(r=2, learning_rate=1e-3, num_train_epochs=1, per_device_train_batch_size=2)
    return Plan(
        (
            Section("zero-shot multiple choice", CHOICES, 2, 0, 0, 3),
            Section("3-shot multiple choice", CHOICES[:2], 2, 3, 0, 6),
            Section("generation behind 2 shots", (QUESTIONS,), 3, 2, 4, 2),
        ),
        Recipe(4, 2, params),
        (2, 4),
        ("sdpa", "eager"),
    )


class Measured(NamedTuple):
    """The rows of a page, and how far the log-likelihoods of both sides are apart in nats a token."""

    rows: list[Row]
    gaps: list[float]


def measure(plan: Plan, model: RandomModel, folder: Path, stem: Path) -> Measured:
    """Measure all of a plan and write its page."""
    host = ModelHost(model.source, model.machine)
    asked = [beside_lm_eval.measure(one, model, host, plan.batches) for one in plan.sections]
    del host  # training has a base of its own
    trained = training_speed.measure(plan.recipe, model, folder, plan.attentions)
    rows = [row for one in asked for row in one.rows] + trained.rows
    n, size = model.shape.n_parameters / 1e9, model.size
    tables = [
        Table(
            "The same texts on both sides; how far their answers are apart:",
            ("section", "requests", "apart", "unit"),
            tuple(
                (name, n_asked, f"{gap:.3g}", unit)
                for name, n_asked, gap, unit in (a.agreement for a in asked)
            ),
        ),
        Table(
            "Every training sees the same rows:",
            ("who", "tokens/s", "steps", "loss of the last quarter", "peak GB"),
            tuple(line.cells for line in trained.lines),
        ),
        NEVER_RUN,
    ]
    title = f"On a GPU: a Llama of {n:.2g} billion random parameters ({size})"
    bench_page.write(title, rows, model.machine, stem, tables, "make gpu")
    scored = [one.agreement for one, section in zip(asked, plan.sections, strict=True) if not section.n_new]
    return Measured(rows, [gap for _, _, gap, _ in scored])


def assert_whole(measured: Measured, plan: Plan, stem: Path, nats: float) -> None:
    """Hold a page to its plan: every row is there, each ratio can be one, both sides say the same."""
    rows = measured.rows
    n_scored = sum(not section.n_new for section in plan.sections)
    assert len(rows) == 2 * len(plan.sections) + n_scored + 4 + len(plan.attentions) - 1
    assert all(0 < row.measured < 1000 for row in rows), rows
    assert max(measured.gaps) < nats, measured.gaps
    page = stem.with_suffix(".md").read_text()
    assert all(f"| {row.name} |" in page for row in rows)
    assert "`make gpu` measures all of it" in page


def test_a_tiny_model_on_the_cpu_is_measured_the_same_way(tiny, tmp_path):
    model = random_llama.build(tmp_path / "model", "tiny", tiny, CPU, spread=0.3)
    found = measure(small_plan(), model, tmp_path, tmp_path / "page")
    assert_whole(found, small_plan(), tmp_path / "page", nats=1e-4)


@pytest.mark.gpu
def test_a_large_model_on_the_gpu_is_measured_and_written(tmp_path):
    machine = gpu()
    tokenizer = hub.unpack()
    size = random_llama.chosen(tokenizer, tmp_path)
    try:
        model = random_llama.build(tmp_path / "model", size, tokenizer, machine)
        found = measure(full_plan(), model, tmp_path, bench_page.stem("gpu"))
    finally:
        shutil.rmtree(tmp_path / "model", ignore_errors=True)  # pytest would keep its gigabytes
    # bf16 holds a log-likelihood of −11 to 0.06 nats; an ignored mask would be several.
    assert_whole(found, full_plan(), bench_page.stem("gpu"), nats=0.25)
