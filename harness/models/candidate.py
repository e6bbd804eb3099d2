"""Protocol of a candidate: what generates and scores text, whatever it is.

Invariant: token ids go in, and nothing but `encode_all` makes them of a text.
"""

from collections.abc import Sequence
from typing import Protocol

from harness.models.batching import Pair
from harness.records import Encoded, Likelihood, Limits, Message, Output, PromptText


class Candidate(Protocol):
    """Protocol of a model that is evaluated."""

    weights_digest: str
    engine: str
    layout_digest: str
    max_context: int

    def encode(
        self, messages: Sequence[Message], continuation: str = "", *, chat_template: bool = True
    ) -> Encoded:
        """Turn messages, and what would follow them, into token ids."""

    def encode_all(self, prompts: Sequence[PromptText]) -> list[Encoded]:
        """Turn messages, and what would follow each, into token ids, in order."""

    def generate(
        self, prompts: Sequence[tuple[int, ...]], limits: Limits, seeds: Sequence[int] = ()
    ) -> list[Output]:
        """Answer each prompt, in order: greedily, or at the limits' temperature by the prompt's seed."""

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """Score each (context, continuation), in order; several may begin alike."""
