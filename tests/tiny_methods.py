"""Contexts to fit methods in, on the tiny model: letters to sort, and pairs of a right and a wrong label.

Invariant: what a method is given depends on the arguments alone.
"""

from tiny_experiment import letters

from harness.models.hardware import Machine
from harness.models.hub import resolve
from harness.records import Example
from harness.training import FitContext

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


def pair_rows(words: slice) -> list[dict]:
    return [
        {
            "id": f"pair-{row['id']}",
            "prompt": row["prompt"],
            "chosen": row["reference"],
            "rejected": OTHER[row["reference"]],
        }
        for row in letters(words)
    ]


def move_adapter(model) -> None:
    """Move what is trained off the reference, the same each time."""
    import torch

    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)


def context(model, folder, *, source=None, machine=CPU, **given) -> FitContext:
    folder.mkdir(parents=True, exist_ok=True)
    return FitContext(
        source or resolve(str(model)),
        machine,
        folder,
        examples(slice(0, 2)),
        examples(slice(5, 6)),
        True,
        0,
        lambda done, total, note="": None,
        **{"pairs": pairs(slice(0, 2)), **given},
    )
