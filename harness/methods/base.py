"""The base model unchanged, for candidates that only change the prompt.

Invariant: nothing is trained or written, and the weights' digest is the base's own.
"""

from harness.plugins import Method
from harness.spec import Spec
from harness.training import FitContext, Weights


class Params(Spec):
    """Nothing to set."""


def fit(context: FitContext, params: Params) -> Weights:
    """Return the base's weights."""
    return Weights("base", context.source.weights_digest, None)


METHOD = Method(params=Params, fit=fit, makes="base")
