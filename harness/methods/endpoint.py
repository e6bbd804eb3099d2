"""A model that is served elsewhere: asked over HTTP by OpenAI's protocol, whatever its weights are.

Invariant: what is kept is where and how to ask, with the name of the variable that holds the key and
never the key; nothing is trained or fetched.
"""

from harness.models.openai_api import FILE, Settings
from harness.plugins import Method
from harness.training import FitContext, Weights


class Params(Settings):
    """The server, the model there, and how it is asked."""


def fit(context: FitContext, params: Params) -> Weights:
    """Keep where the model is asked."""
    (context.folder / FILE).write_text(params.model_dump_json(), "utf-8")
    return Weights(params.protocol, params.weights_digest, context.folder)


METHOD = Method(params=Params, fit=fit, makes="endpoint")
