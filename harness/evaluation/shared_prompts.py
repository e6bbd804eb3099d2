"""What all prompts of a job have in common, which a provider's cache would hold.

Invariant: counted in tokens of the model at hand, on the prompts as they are asked.
"""

from harness.evaluation import Job
from harness.models import openai_api
from harness.models.batching import common_length
from harness.models.hf import Candidate


def shared_tokens(candidate: Candidate, job: Job) -> int:
    """Count the tokens that all prompts of a job begin with: what a provider's cache would hold.

    0 of an endpoint that is sent messages: what it makes of them is not seen here.
    """
    if candidate.engine == openai_api.identity("chat")[0]:
        return 0
    chat = job.task.chat_template
    return common_length([candidate.encode(e.messages, chat_template=chat).context for e in job.examples])
