"""Claims that are timed on the embedded model: a training step's time and memory, a request's latency.

Invariant: compared quantities are measured alternately on one machine, so that disturbances affect both.
"""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

from reports.studies.claims.claim import ClaimResult, estimate_paired_ratio, judge
from reports.studies.claims.sizes import EMBEDDED

_ROWS, _TOKENS = 4, 96  # of a step
_WARM, _STEPS, _ROUNDS = 1, 3, 3
_REQUESTS, _PROMPT, _ANSWER = 12, 128, 12


class Training(NamedTuple):
    """Median seconds of a step, the process's peak memory, and bytes of weights, gradients and Adam's moments."""

    step_s: float
    peak_bytes: int
    held_bytes: int


def train(whole: bool) -> Training:
    """Make a few steps of Adam on the whole embedded model, or on an adapter of rank 16."""
    import numpy as np
    import torch
    from peft import get_peft_model

    from harness.models.devices import load_base
    from harness.models.hardware import Machine
    from harness.models.hub import resolve
    from harness.training import LoraParams, lora_config
    from harness.training.context import resident_peak_bytes

    torch.manual_seed(0)
    precision = "fp32" if whole else "bf16"  # as the harness trains
    model: Any
    model, _ = load_base(resolve(EMBEDDED), Machine("cpu", "CPU", precision, 1.0))
    if not whole:
        model = get_peft_model(model, lora_config(LoraParams()))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    ids = torch.randint(100, 40_000, (_ROWS, _TOKENS))
    took = []
    for _ in range(_WARM + _STEPS):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        took.append(time.perf_counter() - start)
    moments = sum(t.nbytes for state in optimizer.state.values() for t in state.values())
    held = sum(p.nbytes for p in model.parameters()) + sum(p.nbytes for p in trained) + moments
    return Training(float(np.median(took[_WARM:])), resident_peak_bytes(), held)


def _train_in_turns(rounds: int) -> tuple[list[Training], list[Training]]:
    """Train the whole model and an adapter alternately, each in its own process."""
    trainings: tuple[list[Training], list[Training]] = ([], [])
    for _ in range(rounds):
        for whole in (True, False):
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                trainings[not whole].append(alone.submit(train, whole).result())
    return trainings


def memory_of_training() -> ClaimResult:
    """Compare the memory of LoRA with that of full training."""
    wholes, adapters = _train_in_turns(2)
    held = adapters[0].held_bytes / wholes[0].held_bytes
    peak = estimate_paired_ratio([t.peak_bytes for t in adapters], [t.peak_bytes for t in wholes])
    return ClaimResult(
        f"weights, gradients and moments {1 - held:.0%} less (exact); peak of the process {peak} of the whole's",
        "holds" if held <= 1 / 3 else "does not hold here",
        {"held_ratio": held, "peak_ratio": peak.mean, "peak_low": peak.low, "peak_high": peak.high},
        f"steps of {_ROWS} rows of {_TOKENS} tokens on {EMBEDDED}, rank 16 on all linear layers, two processes each",
    )


def time_of_training() -> ClaimResult:
    """Compare the time of a step of LoRA with that of full training."""
    wholes, adapters = _train_in_turns(_ROUNDS)
    ratio = estimate_paired_ratio([t.step_s for t in wholes], [t.step_s for t in adapters])
    return ClaimResult(
        f"{ratio} times as fast",
        judge(ratio.low, ratio.high, least=1.25),
        {"speedup": ratio.mean, "low": ratio.low, "high": ratio.high},
        f"steps of {_ROWS} rows of {_TOKENS} tokens on {EMBEDDED}, rank 16 on all linear layers, {_ROUNDS} processes each",
    )


def latency_after_merging() -> ClaimResult:
    """Time requests to the base, to it with an adapter, and with the adapter merged into its layers."""
    base_s, apart_s, merged_s = _latencies()
    merged, apart = estimate_paired_ratio(merged_s, base_s), estimate_paired_ratio(apart_s, base_s)
    none = judge(-merged.high, -merged.low, least=-1.05)
    return ClaimResult(
        f"merged {merged} of the base's time a request; not merged {apart}",
        none,
        {"merged": merged.mean, "low": merged.low, "high": merged.high, "not_merged": apart.mean},
        f"{_REQUESTS} requests each in turns, {_PROMPT} tokens read and {_ANSWER} written, on {EMBEDDED}; up to 5 % counts as none",
    )


def _latencies() -> tuple[list[float], list[float], list[float]]:
    import torch
    from peft import get_peft_model

    from harness.models.devices import load_base
    from harness.models.hardware import Machine
    from harness.models.hf import HFCandidate, merge_adapter
    from harness.models.hub import resolve
    from harness.training import LoraParams, lora_config

    torch.manual_seed(0)
    machine = Machine("cpu", "CPU", "bf16", 1.0)
    plain, tokenizer = load_base(resolve(EMBEDDED), machine)
    model: Any = get_peft_model(load_base(resolve(EMBEDDED), machine)[0], lora_config(LoraParams()))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1e-3)
    model = model.to(torch.bfloat16)
    ids = torch.randint(100, 40_000, (1, _PROMPT))
    served = HFCandidate(model, tokenizer, "adapter")
    plain.eval()
    model.eval()
    took: tuple[list[float], list[float], list[float]] = ([], [], [])
    for _ in range(1 + _REQUESTS):
        took[0].append(_time(lambda: _answer(plain, ids)))
        took[1].append(_time(lambda: _answer(model, ids)))
        with merge_adapter(served):
            took[2].append(_time(lambda: _answer(model, ids)))
    base_s, apart_s, merged_s = (times[1:] for times in took)
    return base_s, apart_s, merged_s


def _answer(model: Any, ids: Any) -> None:
    import torch

    with torch.inference_mode():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=_ANSWER,
            max_new_tokens=_ANSWER,
            do_sample=False,
        )


def _time(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
