"""Adapters opened in a new process, by PEFT alone and as a candidate of ours.

Invariant: the process knows the model's folder and the adapters' folders, and nothing else of what trained them.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

PROGRAM = """
import json, sys, torch
from pathlib import Path
from peft import PeftModel
from harness.models.hardware import Machine
from harness.models.devices import load_base
from harness.models.hf import ModelHost
from harness.models.hub import resolve

source, machine = resolve(sys.argv[1]), Machine("cpu", "CPU", "fp32", 1.0)
ids, pairs = json.loads(sys.argv[2]), json.loads(sys.argv[3])
found = {}
for folder in sys.argv[4:]:
    alone = PeftModel.from_pretrained(load_base(source, machine)[0], folder).eval()
    with torch.no_grad():
        logits = alone(torch.tensor([ids])).logits[0].tolist()
    with ModelHost(source, machine).use_adapter(Path(folder), "opened") as opened:
        scored = opened.loglikelihood([(tuple(a), tuple(b)) for a, b in pairs])
    found[folder] = [logits, [one.logprob for one in scored]]
print(json.dumps(found))
"""


class AdapterOutputs(NamedTuple):
    """What a new process computes with an adapter: logits by PEFT, log-probabilities of pairs as a candidate."""

    logits: list[list[float]]
    logprobs: list[float]


def open_adapters(
    model: Path,
    folders: Iterable[Path],
    ids: Sequence[int],
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> list[AdapterOutputs]:
    paths = [str(folder) for folder in folders]
    words = [str(model), json.dumps(list(ids)), json.dumps([[list(a), list(b)] for a, b in pairs]), *paths]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return [AdapterOutputs(*found[path]) for path in paths]


def logits_of(model, ids: Sequence[int]):
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor([list(ids)])).logits[0]


def logprobs_of(model, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
    """Compute the log-probabilities of continuations by the logits of a model in this process, row by row."""
    out = []
    for context, continuation in pairs:
        logprobs = logits_of(model, [*context, *continuation]).log_softmax(-1)[-len(continuation) - 1 : -1]
        out.append(sum(logprobs[i, token].item() for i, token in enumerate(continuation)))
    return out
