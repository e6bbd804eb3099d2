"""NEFTune: uniform noise on the input embeddings during training.

Invariant: the noise on a row of t tokens and d dimensions lies within ± alpha / √(t d). Evaluation has none,
nor has a reference model that is read before the first step.
Source: Jain et al. 2023 (arXiv:2310.05914), algorithm 1; transformers' own `neftune_noise_alpha`.
"""

from typing import Any

from pydantic import Field

from harness.spec import Spec

DRAWS = True
WHY_NOT = "whose reference, teacher or own answers are read while the noise is on the model"


class Params(Spec):
    """`noise_alpha` scales the noise; the paper tries 5, 10 and 15."""

    noise_alpha: float = Field(5.0, gt=0, allow_inf_nan=False)


def arguments(params: Params) -> dict[str, Any]:
    """Return transformers' argument."""
    return {"neftune_noise_alpha": params.noise_alpha}
