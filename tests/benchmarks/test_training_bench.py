"""One epoch of LoRA on the quickstart's rows, by harness and by plain TRL, in bf16 and fp32.

Invariant: both sides have the same inputs (see `beside_trl`), and each trains in its own process. TRL's
threads spin as libgomp's default is. Times are not asserted. `HARNESS_BENCH_SCALE` multiplies the rows.
"""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import bench_page
import pytest
from bench_page import Row, Table
from beside_trl import train_by_harness, train_by_trl

from harness import config
from harness.experiment import Scope, prepare_session
from harness.models import hub, memory
from harness.models.hardware import probe
from harness.progress import SilentProgress
from harness.training import FitContext, LowRankParams
from harness.training.lora import adapter_parameters

ROOT = Path(__file__).parents[2]
N_ROWS = max(8, round(200 * float(os.environ.get("HARNESS_BENCH_SCALE", "1"))))
PARAMS = LowRankParams(r=16, learning_rate=2e-3, num_train_epochs=1, per_device_train_batch_size=4)
GOALS = {"bf16": 1.43, "fp32": 1.11}  # 0.7 and 0.9 of its time
SIDES = {
    "harness": train_by_harness,
    "plain TRL": train_by_trl,
    "plain TRL without autocast": partial(train_by_trl, autocast=False),
}
MEASURED = [("harness", "bf16"), *((name, "bf16") for name in SIDES if name != "harness")]
MEASURED += [("harness", "fp32"), ("plain TRL", "fp32")]


def measure(side: str, precision: str, folder: Path) -> dict[str, float]:
    """Train one side in another process; return its costs, its shares of processors and matrix peak."""
    folder.mkdir()
    environment = os.environ | ({} if side == "harness" else {"GOMP_SPINCOUNT": "300000"})
    command = [sys.executable, __file__, side, precision, str(folder)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def train(side: str, precision: str, folder: Path) -> dict[str, float]:
    """Train on one side in this process; both use transformers' Trainer, whose processor time is measured."""
    from transformers import Trainer

    experiment = config.load(ROOT / "harness.yaml", [f"precision={precision}"])
    session = prepare_session(experiment, Scope(), SilentProgress())
    step = session.prompting_step(session.experiment.candidates["lora"], 0)
    train, validation = (
        tuple(map(step, rows))
        for rows in (session.target.items.train[:N_ROWS], session.target.items.validation[:2])
    )
    chat = session.target.task.chat_template
    context = FitContext(
        source=session.source, machine=session.machine, seed=0, chat_template=chat, folder=folder, train=train,
        validation=validation, advance=lambda *_: None,
    )  # fmt: skip
    gflops = context.machine.gflops
    train_as_it_is, used = Trainer.train, 0.0

    def train_timed(*args, **kwargs):
        nonlocal used
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        result = train_as_it_is(*args, **kwargs)
        used = (time.process_time() - cpu_s) / (time.perf_counter() - wall_s)
        return result

    Trainer.train = train_timed
    costs = SIDES[side](context, PARAMS)
    shape = hub.shape(context.source)
    needed = memory.training_flops(shape.active, costs.n_tokens, adapter_parameters(shape, PARAMS))
    return costs._asdict() | {"cpu": 100 * used, "peak": 100 * needed / costs.loop_s / 1e9 / gflops}


@pytest.mark.bench
def test_training_is_measured_against_plain_trl_and_written(tmp_path):
    costs = {
        (side, precision): measure(side, precision, tmp_path / f"{n}")
        for n, (side, precision) in enumerate(MEASURED)
    }
    rows = []
    for precision, goal in GOALS.items():
        ours = costs["harness", precision]
        plain = {side: c for (side, p), c in costs.items() if p == precision and side != "harness"}
        assert {(c["n_tokens"], c["n_steps"]) for c in plain.values()} == {
            (ours["n_tokens"], ours["n_steps"])
        }
        fastest = min(plain, key=lambda side: plain[side]["loop_s"])
        name = f"LoRA r16 on {N_ROWS} rows, {ours['n_tokens']:,} tokens, batches of 4, {precision}"
        times = f"{fastest} {plain[fastest]['loop_s']:.1f} s, harness {ours['loop_s']:.1f} s with its evaluation of 2 rows"
        ratio = plain[fastest]["loop_s"] / ours["loop_s"]
        rows.append(Row(name, ratio, "times as fast", goal, times, at_least=True))
    ours = costs["harness", "bf16"]
    for name, key, goal in (("the matrix peak", "peak", 50), ("two processors, of 200", "cpu", 180)):
        rows.append(Row(f"its share of {name}, bf16", ours[key], "%", goal, "", at_least=True))
    note = "Each in a process of its own; each loss is over its own last batches, in which other rows lie:"
    columns = ("who", "precision", "tokens/s", "steps", "loss of the last quarter", "CPU", "matrix peak")
    lines = tuple(
        (
            *(*side, f"{c['n_tokens'] / c['loop_s']:.0f}", c["n_steps"], f"{c['last_loss']:.3f}"),
            *(f"{c['cpu']:.0f} %", f"{c['peak']:.0f} %", f"{c['peak_gb']:.1f}"),
        )
        for side, c in costs.items()
    )
    table = Table(note, (*columns, "GB at the peak"), lines)
    bench_page.write("Training against plain TRL", rows, probe(), bench_page.stem("training"), [table])


if __name__ == "__main__":
    sys.stdout.write(json.dumps(train(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))
