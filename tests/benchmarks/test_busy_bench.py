"""A training with two threads while another process keeps a core busy: steps with and without it.

Invariant: the matrices have the quickstart's shapes, a quarter of its layers and random weights. Each
training runs in its own process, alternately alone and next to another, and the median of the ratios counts.
"""

import json
import os
import subprocess
import sys
from functools import partial
from statistics import median

import bench_page
import pytest
from bench_page import Row, Table

from harness.models.hardware import probe

GOAL = 2.5
ROUNDS = max(1, round(3 * float(os.environ.get("HARNESS_BENCH_SCALE", "1"))))
SPINNING = {
    "as harness sets it": {},
    "where other work comes later": {"GOMP_SPINCOUNT": "20000"},
    "as libgomp spins by itself": {"GOMP_SPINCOUNT": "300000"},
}
LOOP = """
import json, time
from harness.progress import spins_briefly
spins_briefly()
import torch
from torch import nn
torch.manual_seed(0)
width, inner, layers, rows = 576, 1536, 8, 384

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mix = nn.RMSNorm(width), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x):
        x = x + self.mix(self.norm(x))
        return x + self.down(nn.functional.silu(self.up(self.norm(x))))

model = nn.Sequential(*(Block() for _ in range(layers)))
optimiser, x = torch.optim.AdamW(model.parameters(), lr=1e-4), torch.randn(rows, width)

def seconds_a_step(budget_s):
    start, n = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < budget_s or n < 3:
        model(x).pow(2).mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        n += 1
    return passed / n

seconds_a_step(1.0)
print(json.dumps([torch.get_num_threads(), seconds_a_step(4.0)]))
"""


def time_steps(spinning):
    """Return the threads, and the seconds of a step alone and next to a busy process."""
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    command = [sys.executable, "-c", LOOP]
    run = partial(subprocess.run, command, env=env | spinning, capture_output=True, text=True, check=True)
    n_threads, alone_s = json.loads(run().stdout)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy_process:
        _, beside_s = json.loads(run().stdout)
        busy_process.kill()
    return n_threads, alone_s, beside_s


@pytest.mark.bench
def test_a_training_beside_a_busy_core_is_measured_and_written():
    timings = {name: [time_steps(spinning) for _ in range(ROUNDS)] for name, spinning in SPINNING.items()}
    ratios = {name: median(busy / quiet for _, quiet, busy in rounds) for name, rounds in timings.items()}
    ours, _, default = SPINNING
    note = f"medians of {ROUNDS} rounds; {ratios[default]:.1f} times {default}"
    row = Row("a step beside a busy core", ratios[ours], "times as long", GOAL, note)
    lines = tuple(
        (name, n_threads, f"{1000 * quiet:.0f}", f"{1000 * busy:.0f}", f"{busy / quiet:.1f}")
        for name, rounds in timings.items()
        for n_threads, quiet, busy in rounds
    )
    table = Table("Each round:", ("spinning", "threads", "ms a step alone", "ms beside", "ratio"), lines)
    command = "make bench ARGS='-k busy'"
    bench_page.write("Training beside other work", [row], probe(), bench_page.stem("busy"), [table], command)
    assert all(quiet > 0 for rounds in timings.values() for _, quiet, _ in rounds)
