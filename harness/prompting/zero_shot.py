"""Ask the question as it stands.

Invariant: the example is returned unchanged.
"""

from harness.prompting import PromptingContext, Step
from harness.spec import Spec


class Params(Spec):
    """Zero-shot has no parameters."""


def build(context: PromptingContext, params: Params) -> Step:
    """Return the identity."""
    return lambda example: example
