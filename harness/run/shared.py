"""What all prompts of a job have in common, which a provider's cache would hold.

Invariant: counted in tokens of the model at hand, on the prompts as they are asked.
"""

from harness.candidates import Candidate
from harness.evaluate import Job
from harness.trees import common_length


def shared_tokens(candidate: Candidate, job: Job) -> int:
    """Count the tokens that all prompts of a job begin with: what a provider's cache would hold."""
    chat = job.task.chat_template
    return common_length([candidate.encode(e.messages, chat_template=chat).context for e in job.examples])
