"""Label smoothing of the training loss alone: a share of each target's probability goes to all labels.

Source: Szegedy et al. 2016 (arXiv:1512.00567), section 7; transformers' own `label_smoothing_factor`.
"""

from pydantic import Field

from harness.spec import Spec


class Params(Spec):
    """`factor` is the share that is spread."""

    factor: float = Field(0.1, gt=0, lt=1)


def smoothing(params: Params) -> float:
    """Return the share that is spread."""
    return params.factor
