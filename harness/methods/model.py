"""Whole model that was made elsewhere, judged with its own tokenizer; its files are read where they are."""

from harness.methods._shared import whole_model_problems
from harness.plugins import Method, MethodChecks
from harness.spec import Spec
from harness.training import FitContext, Weights

Params = Spec  # nothing to set


def fit(context: FitContext, params: Params) -> Weights:
    """Return the weights without copying them."""
    return Weights("base", context.source.weights_digest, None, source=context.source)


METHOD = Method(
    params=Params, fit=fit, makes="model", made_elsewhere=True, checks=MethodChecks(whole_model_problems)
)
