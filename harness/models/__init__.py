"""Language models: what generates and scores text, and how it is batched on a device.

Invariant: token ids go in and come out; only `tokenization` makes them of a text.
"""

from harness.models.batching import Size, common_length
from harness.models.candidate import Candidate, TextCandidate, TextTable, classifier
from harness.models.chat_templates import find_left_out, render_chat
from harness.models.hub import set_templates
from harness.models.openai_api import is_private
from harness.models.prefix_cache import windows
from harness.models.tokenization import encode_all, encode_answered, join_to_plain_text, mask_assistant
