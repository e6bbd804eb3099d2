"""NEFTune: uniform noise within ± alpha / √(t d) on the input embeddings during training.

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
