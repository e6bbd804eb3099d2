"""The base model unchanged, for candidates that only change the prompt."""

from harness.plugins import Method
from harness.spec import Spec
from harness.training import FitContext, Weights

Params = Spec  # nothing to set


def fit(context: FitContext, params: Params) -> Weights:
    """Return the base's weights."""
    return Weights("base", context.source.weights_digest, None)


METHOD = Method(params=Params, fit=fit, makes="base")
