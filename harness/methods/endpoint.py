"""Model that is served elsewhere and asked over HTTP by OpenAI's protocol.

Invariant: the key is never stored, only the name of its variable.
"""

from harness.models.openai_api import FILE, Settings
from harness.plugins import Method
from harness.training import FitContext, Weights


class Params(Settings):
    """The server, the model there, and how it is asked."""


def fit(context: FitContext, params: Params) -> Weights:
    """Record the endpoint."""
    (context.folder / FILE).write_text(params.model_dump_json(), "utf-8")
    return Weights(params.protocol, params.weights_digest, context.folder)


METHOD = Method(params=Params, fit=fit, makes="endpoint")
