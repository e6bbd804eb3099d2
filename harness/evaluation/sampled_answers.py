"""Several answers to one item: sampled with separate seeds, and settled into the one that counts.

Invariant: an answer depends on the item, its index and the model, never on the other answers. References are
used only through the scores of the answer that was chosen without them.
Source: Wang et al. 2023, arXiv:2203.11171 (majority); Stiennon et al. 2020, arXiv:2009.01325 (best of n)
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf
from statistics import fmean

from harness.metrics import Parts
from harness.models import Candidate
from harness.records import Encoded, Example, Limits, Output, PromptText, Sample, digest
from harness.spec import MEAN_LOGPROB, Decoding, Task, metric_name

_SEEDS = 2**31  # number of seeds that every server accepts


def choice_name(decoding: Decoding | None, chooser_digest: str = "") -> str:
    """Name the rule that chooses among several answers, with its reward model; empty if the first counts."""
    if decoding is None or decoding.choose == "first":
        return ""
    by = f"{_score_name(decoding)}@{chooser_digest}" if chooser_digest else _score_name(decoding)
    return f"{decoding.choose}:{by}" if decoding.by else decoding.choose


def seed_of(*name_parts: str | int) -> int:
    """Return the seed of an answer, derived from its name; all candidates use the same."""
    return int(digest(list(name_parts)), 16) % _SEEDS


def limits_of(task: Task, decoding: Decoding | None = None) -> Limits:
    """Return the limits of a candidate's answers to a task, greedy ones without `decoding`."""
    limits = Limits(task.max_new_tokens, task.stop)
    return limits._replace(temperature=decoding.temperature, top_p=decoding.top_p) if decoding else limits


def draw_answers(
    candidate: Candidate, task: Task, decoding: Decoding, prompts: Sequence[tuple[Example, Encoded]]
) -> list[Output]:
    """Sample the answers to each item; the first of each has all of them attached, and their total cost."""
    limits = limits_of(task, decoding)
    n = decoding.samples
    repeated = [prompt for prompt in prompts for _ in range(n)]
    seeds = [seed_of(example.id, index) for example, _ in prompts for index in range(n)]
    outputs = candidate.generate([ids.context for _, ids in repeated], limits, seeds) if repeated else []
    if decoding.by == MEAN_LOGPROB:  # of each nonempty answer, in nats per token, as the model scores it
        pairs = zip(repeated, outputs, strict=True)
        texts = [PromptText(example.messages, o.text, task.chat_template) for (example, _), o in pairs]
        encoded = candidate.encode_all(texts)
        fit = [i for i, e in enumerate(encoded) if e.continuation and outputs[i].finish_reason != "error"]
        scores = candidate.loglikelihood([(encoded[i].context, encoded[i].continuation) for i in fit])
        means = {i: s.logprob / len(encoded[i].continuation) for i, s in zip(fit, scores, strict=True)}
        outputs = [replace(output, mean_logprob=means.get(i)) for i, output in enumerate(outputs)]
    groups = (outputs[start : start + n] for start in range(0, len(outputs), n))
    totals = ("n_prompt_tokens", "n_output_tokens", "compute_s")
    joined = []
    for samples in groups:
        costs = {name: sum(getattr(sample, name) for sample in samples) for name in totals}
        joined.append(replace(samples[0], samples=tuple(samples), **costs))
    return joined


def settle(
    samples: Sequence[Sample],
    decoding: Decoding,
    same: Callable[[str], object],
    worst: Mapping[str, Parts | None],
) -> Sample:
    """Return the answer that counts: the chosen one, or the mean of all as the expected score.

    Failed answers are chosen only if there are no others, and count in a mean with the metric's `worst`
    parts. An item with some failed answers is incomplete. Answers with equal `same` are one answer.
    """
    failed_samples = [sample for sample in samples if sample.status == "error"]
    if len(failed_samples) == len(samples):
        return samples[0]
    answered_samples = [sample for sample in samples if sample.status != "error"]
    valid = [sample for sample in answered_samples if sample.status == "ok"] or answered_samples
    name = _score_name(decoding)
    if decoding.choose == "majority":
        votes = Counter(same(sample.text) for sample in valid)
        winner = max(valid, key=lambda sample: (votes[same(sample.text)], -sample.index))
    elif decoding.choose == "best" and decoding.by == MEAN_LOGPROB:
        logprobs = [-inf if sample.mean_logprob is None else sample.mean_logprob for sample in valid]
        winner = valid[logprobs.index(max(logprobs))]
    elif decoding.choose == "best" and name in samples[0].parts:
        grades = [-inf if (parts := sample.parts[name]) is None else parts[0] for sample in valid]
        winner = valid[grades.index(max(grades))]
    else:
        mean_parts: dict[str, Parts | None] = {}
        for metric in samples[0].parts:
            # An answer that failed or could not be scored has the worst parts.
            lost = worst.get(metric)
            scores = [s.parts[metric] or (lost if s.status == "error" or s.error else None) for s in samples]
            scored_parts = [values for values in scores if values is not None]
            mean_parts[metric] = tuple(map(fmean, zip(*scored_parts, strict=True))) if scored_parts else None
        ((status, _),) = Counter(sample.status for sample in answered_samples).most_common(1)
        winner = replace(answered_samples[0], status=status, parts=mean_parts)
    if not failed_samples:
        return winner
    reason = f"{len(failed_samples)} of {len(samples)} answers failed: {failed_samples[0].error}"
    return replace(winner, status="incomplete", error=reason)


def _score_name(decoding: Decoding) -> str:
    return f"reward:{decoding.reward_model}" if decoding.reward_model else metric_name(decoding.by or "")
