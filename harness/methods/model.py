"""A whole model that was made elsewhere: a merged adapter, a full fine-tune of axolotl, a model of the hub.

Invariant: it is judged against the experiment's base, never by identity, and generates and scores with the
tokenizer that lies beside it; nothing is copied, so its files are read where they are.
"""

from harness.methods._shared import whole_model_problems
from harness.plugins import Method, MethodChecks
from harness.spec import Spec
from harness.training import FitContext, Weights


class Params(Spec):
    """Nothing to set."""


def fit(context: FitContext, params: Params) -> Weights:
    """Return the weights as they lie."""
    return Weights("base", context.source.weights_digest, None, source=context.source)


METHOD = Method(
    params=Params, fit=fit, makes="model", made_elsewhere=True, checks=MethodChecks(whole_model_problems)
)
