"""Several answers to one item: drawn by seeds of their own, and settled into the one that counts.

Invariant: an answer depends on the item, its index and the model, never on the answers beside it; what
settles them never sees a reference but through the scores of the answer that was chosen without them.
Source: Wang et al. 2023, arXiv:2203.11171, for the majority; Stiennon et al. 2020, arXiv:2009.01325, for the
best of n.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf
from statistics import fmean
from typing import NamedTuple

from harness.metrics import Parts
from harness.models import Candidate
from harness.provenance import versions_of
from harness.records import Encoded, Example, Limits, Output, PromptText, Sample, digest
from harness.spec import MEAN_LOGPROB, Decoding, Task, metric_name

_SEEDS = 2**31  # as many as every server takes


class ItemPrompt(NamedTuple):
    """One item as the prompt of a candidate."""

    example: Example
    context: Encoded


def answers_digest(decoding: Decoding | None) -> str:
    """Digest what decides the answers that are drawn; empty of greedy ones."""
    if decoding is None:
        return ""
    drawn = [decoding.temperature, decoding.top_p, decoding.samples, decoding.by == MEAN_LOGPROB]
    return digest([drawn, versions_of("decoding")])


def choice_name(decoding: Decoding | None, chooser_digest: str = "") -> str:
    """Name how one of several answers is chosen; empty where the first one counts.

    `chooser_digest` is that of the reward model which chooses, where it has scored them.
    """
    if decoding is None or decoding.choose == "first":
        return ""
    by = f"{_score_name(decoding)}@{chooser_digest}" if chooser_digest else _score_name(decoding)
    return f"{decoding.choose}:{by}" if decoding.by else decoding.choose


def seed_of(*drawn: str | int) -> int:
    """Return the seed of an answer by what names it; every candidate draws by the same."""
    return int(digest(list(drawn)), 16) % _SEEDS


def draw_answers(
    candidate: Candidate, task: Task, decoding: Decoding, prompts: Sequence[ItemPrompt]
) -> list[Output]:
    """Draw the answers to each item; the first of each holds all of them, and what they took together."""
    limits = Limits(task.max_new_tokens, task.stop, decoding.temperature, decoding.top_p)
    each = [(one, index) for one in prompts for index in range(decoding.samples)]
    seeds = [seed_of(one.example.id, index) for one, index in each]
    made = candidate.generate([one.context.context for one, _ in each], limits, seeds) if each else []
    if decoding.by == MEAN_LOGPROB:
        made = _score_tokens(candidate, task, [one for one, _ in each], made)
    groups = (made[at : at + decoding.samples] for at in range(0, len(made), decoding.samples))
    return list(map(join_samples, groups))


def join_samples(samples: Sequence[Output]) -> Output:
    """Return the first of several answers with all of them, and what they took together."""
    return replace(
        samples[0],
        n_prompt_tokens=sum(one.n_prompt_tokens for one in samples),
        n_output_tokens=sum(one.n_output_tokens for one in samples),
        compute_s=sum(one.compute_s for one in samples),
        samples=tuple(samples),
    )


def _score_tokens(
    candidate: Candidate, task: Task, prompts: Sequence[ItemPrompt], made: Sequence[Output]
) -> list[Output]:
    """Score the tokens of each answer that has any, in nats a token, as the model itself would give them."""
    read = candidate.encode_all(
        [
            PromptText(one.example.messages, output.text, task.chat_template)
            for one, output in zip(prompts, made, strict=True)
        ]
    )
    fit = [i for i, e in enumerate(read) if e.continuation and made[i].finish_reason != "error"]
    scores = candidate.loglikelihood([(read[i].context, read[i].continuation) for i in fit])
    known = {i: s.logprob / len(read[i].continuation) for i, s in zip(fit, scores, strict=True)}
    return [replace(output, mean_logprob=known.get(i)) for i, output in enumerate(made)]


def settle(
    samples: Sequence[Sample],
    decoding: Decoding,
    same: Callable[[str], object],
    worst: Mapping[str, Parts | None],
) -> Sample:
    """Return what counts of an item's answers: the one that is chosen, or their mean as the expected score.

    Answers that failed are chosen only where there is no other, and count in a mean as `worst` by metric, if
    it has one. An item of which some failed is incomplete. Two of which `same` is equal are one answer.
    """
    failed = [one for one in samples if one.status == "error"]
    if len(failed) == len(samples):
        return samples[0]
    settled = _settle(samples, decoding, same, worst)
    if not failed:
        return settled
    why = f"{len(failed)} of {len(samples)} answers failed: {failed[0].error}"
    return replace(settled, status="incomplete", error=why)


def _settle(
    samples: Sequence[Sample],
    decoding: Decoding,
    same: Callable[[str], object],
    worst: Mapping[str, Parts | None],
) -> Sample:
    answered = [one for one in samples if one.status != "error"]
    able = [one for one in answered if one.status == "ok"] or answered
    if decoding.choose == "majority":
        return _majority(able, same)
    if decoding.choose == "best" and (
        decoding.by == MEAN_LOGPROB or _score_name(decoding) in samples[0].parts
    ):
        return max(able, key=lambda one: _merit(one, decoding))
    return _mean(samples, worst)


def _majority(samples: Sequence[Sample], same: Callable[[str], object]) -> Sample:
    """Return the first of the answers that are given most often; of a tie the earliest."""
    votes = Counter(same(one.text) for one in samples)
    return max(samples, key=lambda one: (votes[same(one.text)], -one.index))


def _merit(one: Sample, decoding: Decoding) -> float:
    if decoding.by == MEAN_LOGPROB:
        return -inf if one.mean_logprob is None else one.mean_logprob
    graded = one.parts[_score_name(decoding)]
    return -inf if graded is None else graded[0]


def reward_name(candidate: str) -> str:
    """Name the scores that the reward model of a candidate gives."""
    return f"reward:{candidate}"


def _score_name(decoding: Decoding) -> str:
    """Name the scores by which the best answer is chosen."""
    return reward_name(decoding.reward_model) if decoding.reward_model else metric_name(decoding.by or "")


def _mean(samples: Sequence[Sample], worst: Mapping[str, Parts | None]) -> Sample:
    """Return the first that did not fail with the mean parts of all, and the commonest status of such."""
    answered = [one for one in samples if one.status != "error"]
    parts = {name: _mean_parts([_parts(one, name, worst) for one in samples]) for name in samples[0].parts}
    ((status, _),) = Counter(one.status for one in answered).most_common(1)
    return replace(answered[0], status=status, parts=parts)


def _parts(one: Sample, name: str, worst: Mapping[str, Parts | None]) -> Parts | None:
    """Return an answer's parts of a metric, the worst where it failed or could not be scored."""
    known = one.parts[name]
    return worst.get(name) if known is None and (one.status == "error" or one.error) else known


def _mean_parts(parts: Sequence[Parts | None]) -> Parts | None:
    known = [one for one in parts if one is not None]
    return tuple(map(fmean, zip(*known, strict=True))) if known else None
