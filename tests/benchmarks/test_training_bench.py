"""One epoch of LoRA on the quickstart's rows, by harness and by plain TRL: trained tokens a second.

Invariant: both sides are given the same (see `beside_trl`). Nothing is asserted of a time.
`HARNESS_BENCH_SCALE` multiplies the rows (0.05 for a trial of a minute).
"""

import os
from pathlib import Path

import bench_page
import pytest
from bench_page import Row, Table
from beside_trl import train_by_harness, train_by_trl

from harness import config
from harness.evaluation.rows.row_sets import prompting_step
from harness.experiment import Scope, prepare_session
from harness.models.hardware import probe
from harness.progress import SilentProgress
from harness.training import FitContext, LowRankParams

ROOT = Path(__file__).parents[2]
N_ROWS = max(8, round(200 * float(os.environ.get("HARNESS_BENCH_SCALE", "1"))))
PARAMS = LowRankParams(r=16, learning_rate=2e-3, num_train_epochs=1, per_device_train_batch_size=4)
GOAL = 1.3


def the_context(folder: Path) -> FitContext:
    """Take the quickstart's training rows, asked as its LoRA candidate asks them."""
    session = prepare_session(config.load(ROOT / "harness.yaml"), Scope(), SilentProgress())
    step = prompting_step(session, session.experiment.candidates["lora"], 0)
    train, validation = (
        tuple(map(step, rows))
        for rows in (session.target.items.train[:N_ROWS], session.target.items.validation[:2])
    )
    chat = session.target.task.chat_template
    return FitContext(session.source, session.machine, folder, train, validation, chat, 0, lambda *_: None)


@pytest.mark.bench
def test_training_is_measured_against_plain_trl_and_written(tmp_path):
    context = the_context(tmp_path)
    ours, theirs = train_by_harness(context, PARAMS), train_by_trl(context, PARAMS)
    assert (ours.n_tokens, ours.n_steps) == (theirs.n_tokens, theirs.n_steps)
    assert min(ours.loop_s, theirs.loop_s) > 0
    name = f"LoRA r16 on {len(context.train)} rows, {ours.n_tokens:,} tokens, batches of 4"
    times = f"plain TRL {theirs.loop_s:.1f} s, harness {ours.loop_s:.1f} s with its evaluation of 2 rows"
    ratio = ours.tokens_per_s / theirs.tokens_per_s
    row = Row(name, ratio, "times as fast", GOAL, times, at_least=True)
    lines = tuple(
        (who, f"{t.tokens_per_s:.0f}", t.n_steps, f"{t.last_loss:.3f}", f"{t.peak_gb:.1f}")
        for who, t in (("harness", ours), ("plain TRL", theirs))
    )
    table = Table(
        "Both in one process; each loss is over its own last batches, in which other rows lie:",
        ("who", "tokens/s", "steps", "loss of the last quarter", "GB at the peak"),
        lines,
    )
    bench_page.write("Training against plain TRL", [row], probe(), bench_page.stem("training"), [table])
