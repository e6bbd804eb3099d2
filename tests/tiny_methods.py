"""Contexts for fitting methods on the tiny model: letters to sort, and pairs of a right and a wrong label.

Invariant: a method's inputs depend only on the arguments.
"""

import json
from types import MappingProxyType

from tiny_experiment import letters

from harness import training
from harness.models.hardware import Machine
from harness.models.hf import ModelHost
from harness.models.hub import load_tokenizer, resolve
from harness.records import Example
from harness.training import FitContext, Weights
from harness.training.tokenized import tokenize

CPU = Machine("cpu", "CPU", "fp32", 1.0)
OTHER = {"late": "money", "money": "late"}


def examples(words: slice, choices=("late", "money")) -> tuple[Example, ...]:
    return tuple(
        Example(row["id"], ({"role": "user", "content": row["prompt"]},), (row["reference"],), choices)
        for row in letters(words)
    )


def pairs(words: slice) -> tuple[Example, ...]:
    return tuple(
        Example(e.id, e.messages, e.references, cluster=e.id, rejected=OTHER[e.references[0]])
        for e in examples(words)
    )


def count_tokens(model, pairs) -> int:
    """Count the tokens of each pair's prompt with its chosen answer, and with its rejected one."""
    source = resolve(str(model))
    answers = [(pair.references[0], pair.rejected) for pair in pairs]
    tokenized = tokenize(pairs, answers, True, load_tokenizer(source), source)
    return sum(len(ids) for _, wholes in tokenized for ids in wholes)


def pair_rows(words: slice) -> list[dict]:
    return [
        {
            "id": f"pair-{row['id']}", "prompt": row["prompt"], "chosen": row["reference"],
            "rejected": OTHER[row["reference"]],
        }
        for row in letters(words)
    ]  # fmt: skip


def host_of(folder, precision="fp32") -> ModelHost:
    return ModelHost(resolve(str(folder)), CPU._replace(precision=precision))


def move_adapter(model) -> None:
    """Move the trained weights off the reference, always by the same amount."""
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)


def ignore(done, total, note="") -> None:
    """Ignore progress."""


def context(model, folder, *, source=None, **changes) -> FitContext:
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"train": examples(slice(0, 2)), "validation": examples(slice(5, 6)), "pairs": pairs(slice(0, 2))}
    defaults = {"machine": CPU, "chat_template": True, "seed": 0, "advance": ignore}
    return FitContext(source=source or resolve(str(model)), folder=folder, **(rows | defaults | changes))


def fit(model, folder, method, params, **changes) -> Weights:
    """Fit a method on a model with these parameters, in a context with these changes."""
    return method.METHOD.fit(context(model, folder, **changes), method.Params(**params))


def write_job(model, folder, method="lora", params=MappingProxyType({}), *, n_pairs=2, general=None, **extra):
    """Write a job on a model, with these rows and pairs, into a folder; return the folder."""
    fields = {"machine": CPU, "seed": 0, "regularize": {}} | extra
    code = training.code_of(method, fields["regularize"])
    source = fields.pop("source", None) or resolve(str(model))
    job = training.TrainingJob(method=method, params=dict(params), source=source, code=code, **fields)
    rows = {"train": examples(slice(0, 2)), "validation": examples(slice(5, 6)), "general": general}
    training.write_job(folder, job, **rows, pairs=pairs(slice(0, n_pairs)))
    return folder


def read_fit(folder) -> dict:
    return json.loads((folder / training.FIT).read_text())


class Interrupted(KeyboardInterrupt):
    """An interrupt like a user's Ctrl-C, distinguishable from a real one."""


def stop_at(step, heard=None):
    """Return a progress callback that records steps, and interrupts the training at one of them."""

    def advance(done, total, note=""):
        if heard is not None:
            heard.append(done)
        if done == step:
            raise Interrupted

    return advance
