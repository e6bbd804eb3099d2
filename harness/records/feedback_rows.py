"""Record of one request that a model served in production, with what its users said of the answer."""

import json
from dataclasses import dataclass

from harness.records.sample_results import Message


@dataclass(frozen=True, slots=True)
class FeedbackRow:
    """One served request, with personal data masked; an unknown text is empty, an unknown thumb None.

    `row_id` is a keyed digest of the row as it was logged. `messages` is the conversation up to the answer,
    as canonical JSON of objects with role and content. `answer` is what `model` answered. `thumb` is True for
    up. `correction` is the answer as a person wrote it, `preference` another answer that was preferred to
    `answer`. `time` is ISO 8601 in UTC. `sender` is a keyed digest of who asked, and `assignment` says how
    the model was chosen for the request. `source` is the file and line that it was added from.
    """

    row_id: str
    messages: str
    answer: str
    thumb: bool | None = None
    correction: str = ""
    preference: str = ""
    model: str = ""
    time: str = ""
    sender: str = ""
    assignment: str = ""
    source: str = ""

    @property
    def conversation(self) -> tuple[Message, ...]:
        """Messages up to the answer."""
        return tuple(json.loads(self.messages))

    @property
    def request(self) -> str:
        """The last user message's text, as of a test item; what a tool returned was not asked."""
        return next((m["content"] for m in reversed(self.conversation) if m["role"] == "user"), "")
