"""Scoring, generation, training and memory of a model of 1 to 8 billion random weights on a GPU, as ratios.

Invariant: times are not asserted; each figure is a ratio of two measurements in one process. Without a
GPU a tiny model runs the same code on the CPU, so that the benchmark is tested.
"""

import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import bench_page
import beside_lm_eval
import gpu_parts
import pytest
import random_llama
import training_speed
from bench_page import Row, Table
from beside_lm_eval import CHOICES, QUESTIONS, Section
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
    """Extent of the measurement; `batches` are lm-eval's sizes to try, `attentions` those to train with."""

    sections: tuple[Section, ...]
    recipe: Recipe
    batches: tuple[int, ...]
    attentions: tuple[str, ...]


def make_full_plan() -> Plan:
    """Return the plan for a GPU, with FlashAttention-2 if it is installed."""
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


def make_small_plan() -> Plan:
    """Return the plan for a tiny model on a CPU; its second attention replaces FlashAttention-2."""
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


class Figures(NamedTuple):
    """Figures of a part for the page, and the gap between both sides' log-likelihoods, in nats per token."""

    title: str
    rows: list[Row]
    tables: tuple[Table, ...]
    gap: float = 0.0

    def leave(self, machine: Machine) -> None:
        gpu_parts.leave(self.title, self.rows, machine, self.tables)


def measure_answers(section: Section, plan: Plan, model: RandomModel) -> Figures:
    """Ask both sides the items of one section."""
    host = ModelHost(model.source, model.machine)
    measured = beside_lm_eval.measure(section, model, host, plan.batches)
    name, n_asked, gap, unit = measured.agreement
    table = Table(
        "The same texts on both sides; how far their answers are apart:",
        ("section", "requests", "apart", "unit"),
        ((name, n_asked, f"{gap:.3g}", unit),),
    )
    return Figures(title_of(model), measured.rows, (table,), 0.0 if section.n_new else gap)


def measure_training(plan: Plan, model: RandomModel, folder: Path) -> Figures:
    """Train on the same rows with every method."""
    trained = training_speed.measure(plan.recipe, model, folder, plan.attentions)
    table = Table(
        "Every training sees the same rows:",
        ("who", "tokens/s", "steps", "loss of the last quarter", "peak GB"),
        tuple(line.cells for line in trained.lines),
    )
    return Figures(title_of(model), trained.rows, (table,))


def title_of(model: RandomModel) -> str:
    """Name the measured model."""
    return f"a Llama of {model.shape.n_parameters / 1e9:.2g} billion random parameters ({model.size})"


def assert_whole(figures: Figures, n_rows: int, nats: float = 0.0) -> None:
    """Assert that figures match their plan: all rows, possible ratios, both sides in agreement."""
    assert len(figures.rows) == n_rows
    assert all(0 < row.measured < 1000 for row in figures.rows), figures.rows
    assert figures.gap <= nats, figures.gap


def n_rows(section: Section) -> int:
    """Count the rows of a section: time and memory, for scoring also the share of the peak."""
    return 2 if section.n_new else 3


@pytest.mark.e2e
def test_a_tiny_model_on_the_cpu_is_measured_the_same_way(tiny, tmp_path, monkeypatch):
    model, plan = random_llama.build(tmp_path / "model", "tiny", tiny, CPU, spread=0.3), make_small_plan()
    monkeypatch.setenv(gpu_parts.FIGURES, str(tmp_path / "figures.json"))
    for section in plan.sections:
        figures = measure_answers(section, plan, model)
        assert_whole(figures, n_rows(section), nats=1e-4)
    assert_whole(trained := measure_training(plan, model, tmp_path), 3 + len(plan.attentions))
    trained.leave(CPU)
    lines = bench_page.section(json.loads((tmp_path / "figures.json").read_text()))
    assert lines[0].startswith("a Llama of")
    assert all(any(line.startswith(f"| {row.name} |") for line in lines) for row in trained.rows)


@pytest.fixture
def large_model(tmp_path):
    """Build the largest model that fits the GPU, and remove its gigabytes, which pytest would keep."""
    machine, tokenizer = gpu(), Path(os.environ.get("HARNESS_GPU_TOKENIZER") or hub.unpack())
    size = random_llama.choose_size(tokenizer, tmp_path)
    try:
        yield random_llama.build(tmp_path / "model", size, tokenizer, machine)
    finally:
        shutil.rmtree(tmp_path / "model", ignore_errors=True)


@pytest.mark.gpu
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_large_model_answers_beside_lm_eval(large_model, index):
    plan = make_full_plan()
    section = plan.sections[index]
    figures = measure_answers(section, plan, large_model)
    figures.leave(large_model.machine)
    # bf16 represents a log-likelihood of −11 to 0.06 nats; an ignored mask would change it by several.
    assert_whole(figures, n_rows(section), nats=0.25)


@pytest.mark.gpu
def test_a_large_model_trains_beside_trl(large_model, tmp_path):
    plan = make_full_plan()
    figures = measure_training(plan, large_model, tmp_path)
    figures.leave(large_model.machine)
    assert_whole(figures, 3 + len(plan.attentions))
