"""Whole model that was made elsewhere: a merged adapter, a full fine-tune by axolotl, a model of the hub.

Invariant: it is compared with the experiment's base like any other weights, and uses its own tokenizer;
nothing is copied, and its files are read where they are.
"""

from harness.methods._shared import whole_model_problems
from harness.plugins import Method, MethodChecks
from harness.spec import Spec
from harness.training import FitContext, Weights


class Params(Spec):
    """Nothing to set."""


def fit(context: FitContext, params: Params) -> Weights:
    """Return the weights without copying them."""
    return Weights("base", context.source.weights_digest, None, source=context.source)


METHOD = Method(
    params=Params, fit=fit, makes="model", made_elsewhere=True, checks=MethodChecks(whole_model_problems)
)
