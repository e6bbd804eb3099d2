"""Half fine-tuning: in each round half of each layer's matrices is trained, a different half in each round.

Invariant: in each layer half of the modules of each kind are chosen (attention, MLP, norms). Parameters
outside the layers are always trained. Source: Hui et al. 2024 (arXiv:2404.18466).
"""

import random
import re
from collections.abc import Collection, Sequence

from pydantic import Field

from harness.spec import Spec

_OF_A_LAYER = re.compile(r"(?P<stack>.*?)\.(?P<layer>\d+)\.(?P<module>.+)\.[^.]+")


class Params(Spec):
    """Number of `rounds` of the training, each with its own half."""

    rounds: int = Field(1, ge=1, le=1000)


def select(names: Sequence[str], progress: float, params: Params, seed: int) -> Collection[str]:
    """Return the parameters that are trained at a share of all steps, in [0, 1)."""
    turn = min(int(progress * params.rounds), params.rounds - 1)
    draw = random.Random(f"{seed}/half/{turn}")
    chosen: set[str] = set()
    groups: dict[tuple[str, int, str], dict[str, list[str]]] = {}
    for name in names:
        match = _OF_A_LAYER.fullmatch(name)
        if match is None:
            chosen.add(name)
            continue
        module = match["module"]
        kind = module.partition(".")[0] if "." in module else ""
        group = groups.setdefault((match["stack"], int(match["layer"]), kind), {})
        group.setdefault(module, []).append(name)
    for (_, layer, _), modules in sorted(groups.items()):
        n = (len(modules) + (layer + turn) % 2) // 2
        chosen.update(name for module in draw.sample(sorted(modules), n) for name in modules[module])
    return chosen
