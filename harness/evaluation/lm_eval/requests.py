"""Requests of lm-eval answered with a Candidate, and its metrics as ours.

Invariant: a pair of texts has the same token ids as in lm-eval: spaces at the end of the context move to the
continuation, both are tokenised together, and an empty context is the beginning- or end-of-sequence token.
With equal weights an aggregate equals lm-eval's own; metrics without such a form are left out and reported.
Source: lm_eval/api/model.py (TemplateLM), lm_eval/models/huggingface.py (HFLM), lm_eval/api/metrics.py,
version 0.4.13
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf, isfinite
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from harness.errors import HarnessError, UserError, did_you_mean
from harness.metrics import Array, Metric, Parts, ratio, weighted_mean
from harness.models import Candidate
from harness.records import Encoded, Limits, Output, PromptText

_PAIR, _ROLLING, _GENERATE = "loglikelihood", "loglikelihood_rolling", "generate_until"  # types of requests
_MAX_NEW_TOKENS = 256
_TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class RequestResponse(NamedTuple):
    """Response to one request for an instance's `resps`, its token ids, and its output if generated."""

    response: Any
    encoded: Encoded
    output: Output | None = None


class UnfitRequest(NamedTuple):
    """Reason why an instance could not be evaluated."""

    reason: str
    n_tokens: int


def answer(
    candidate: Candidate, instances: Sequence[Any], encoded: Sequence[Encoded] = (), *, cut: bool = False
) -> list[RequestResponse | UnfitRequest]:
    """Answer requests of any type, in order; with `cut` a prompt that is too long loses its beginning."""
    ids = encoded or encode_requests(candidate, instances)
    by_kind: dict[str, dict[int, Encoded]] = {kind: {} for kind in _JOINS}
    for i, (instance, request_ids) in enumerate(zip(instances, ids, strict=True)):
        by_kind[instance.request_type][i] = request_ids
    room, pairs, whole_texts = candidate.max_context, by_kind[_PAIR], by_kind[_ROLLING]
    responses: dict[int, RequestResponse | UnfitRequest] = {}
    for i, pair in pairs.items():
        n = _n_read(pair)
        if cut and n > room:  # keeps at least one token of the context
            pairs[i] = pair._replace(context=pair.context[min(n - room, len(pair.context) - 1) :])
            n = _n_read(pairs[i])
        if n > room:
            responses[i] = _unfit(n, room)
        if not pair.continuation:
            responses[i] = UnfitRequest("a continuation without a token of its own", n)
    if fit := {i: pair for i, pair in pairs.items() if i not in responses}:
        scored = candidate.loglikelihood([(pair.context, pair.continuation) for pair in fit.values()])
        scored_pairs = zip(fit.items(), scored, strict=True)
        responses |= {i: RequestResponse(tuple(score), pair) for (i, pair), score in scored_pairs}
    parts_by_text = {i: list(windows(e.continuation, e.context[0], room)) for i, e in whole_texts.items()}
    if parts_by_text:
        all_windows = [(w.context, w.continuation) for parts in parts_by_text.values() for w in parts]
        scores = iter(candidate.loglikelihood(all_windows))
        sums = {i: sum(next(scores).logprob for _ in parts) for i, parts in parts_by_text.items()}
        responses |= {i: RequestResponse(total, whole_texts[i]) for i, total in sums.items()}
    limits = {i: limits_of(instances[i].args[1]) for i in by_kind[_GENERATE]}
    prompts = {i: request_ids.context for i, request_ids in by_kind[_GENERATE].items()}
    for i, prompt in prompts.items():
        room = candidate.max_context - limits[i].max_new_tokens
        if cut and room > 0:
            prompts[i] = prompt[-room:]
        elif len(prompt) > room:
            responses[i] = _unfit(len(prompt), room)
    for shared_limits in dict.fromkeys(limits.values()):
        fitting = [i for i, limit in limits.items() if limit == shared_limits and i not in responses]
        outputs = candidate.generate([prompts[i] for i in fitting], shared_limits) if fitting else []
        for i, output in zip(fitting, outputs, strict=True):
            responses[i] = RequestResponse(output.text, Encoded(prompts[i]), output)
    return [responses[i] for i in range(len(instances))]


def encode_requests(candidate: Candidate, instances: Sequence[Any]) -> list[Encoded]:
    """Encode requests as lm-eval does for causal models; each text once, all in one call."""
    prompts = []
    for instance in instances:
        text, *rest_args = instance.args
        texts = [_plain(text)]
        if instance.request_type == _ROLLING:
            texts = [PromptText((), " ", chat_template=False), *(texts if text else [])]
        elif instance.request_type == _PAIR:
            context = text.rstrip()
            continuation = text[len(context) :] + rest_args[0]
            texts = [_plain(context), _plain(context + continuation)]
            if not context:
                texts = [PromptText((), continuation, chat_template=False, is_written=True)]
        prompts.append(texts)
    ids = iter(candidate.encode_all([text for texts in prompts for text in texts]))
    joins = (_JOINS[instance.request_type] for instance in instances)
    return [join([next(ids) for _ in texts]) for join, texts in zip(joins, prompts, strict=True)]


def _plain(text: str) -> PromptText:
    return PromptText(({"role": "user", "content": text},), chat_template=False, is_written=True)


def _join_pair(ids: Sequence[Encoded]) -> Encoded:
    """Return a continuation after its context; a tokenizer may repeat the prefix token."""
    first, *rest = ids
    if rest:
        context, whole_ids = first.context, rest[0].context
        return Encoded(context, whole_ids[len(context) :], whole_ids[: len(context)] != context)
    is_repeated = first.continuation[:1] == first.context and len(first.continuation) > 1
    return Encoded(first.context, first.continuation[1:]) if is_repeated else first


def windows(ids: Sequence[int], prefix: int, length: int) -> Iterator[Encoded]:
    """Cut a text into windows of at most `length` tokens, each predicted once, with all context that fits."""
    for start in range(0, len(ids), length):
        end = min(start + length, len(ids))
        if start == 0:
            yield Encoded((prefix,), tuple(ids[:end]))
        else:
            yield Encoded(tuple(ids[max(end - length - 1, 0) : start]), tuple(ids[start:end]))


def _unfit(n_tokens: int, room: int) -> UnfitRequest:
    return UnfitRequest(f"prompt of {n_tokens} tokens, the context holds {room}", n_tokens)


def _n_read(pair: Encoded) -> int:
    """Count the tokens that the model reads: all but the last, which is only predicted."""
    return len(pair.context) + len(pair.continuation) - 1


def limits_of(settings: Mapping[str, Any]) -> Limits:
    """Read the limits of an answer from a task's `generation_kwargs`."""
    until = settings.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    token_limits = (settings[name] for name in _TOKEN_LIMITS if settings.get(name) is not None)
    return Limits(int(next(token_limits, _MAX_NEW_TOKENS)), tuple(s for s in stop if s))


def is_sampled(settings: Mapping[str, Any]) -> bool:
    """Tell from a task's `generation_kwargs` whether answers are sampled; `do_sample` takes precedence."""
    do_sample = settings.get("do_sample")
    return bool(do_sample if do_sample is not None else float(settings.get("temperature") or 0) > 0)


_JOINS: Mapping[str, Callable[[Sequence[Encoded]], Encoded]] = {
    _PAIR: _join_pair,
    # A whole text after the prefix token.
    _ROLLING: lambda ids: Encoded(ids[0].context[:1], ids[1].context if len(ids) > 1 else ()),
    _GENERATE: itemgetter(0),
}


# A mean is a share in [0, 1] if the metric's name in lm-eval says so.
_SHARE = re.compile(r"^(acc|exact_match|em$|f1$|mc[12]$)|(_acc|_accuracy|_em|exact_match)(_|$)|^accuracy")


class Score(NamedTuple):
    """One number that lm-eval computes for a task; `name` is its metric, with the filter if several."""

    name: str
    metric: str
    filter: str
    aggregation: str
    higher_is_better: bool

    @property
    def is_share(self) -> bool:
        """Tell whether its values are rates in [0, 1]."""
        return self.aggregation in ("f1", "agg_inst_level_acc") or (
            self.aggregation in ("mean", "nanmean") and _SHARE.search(self.metric) is not None
        )


class _Form(NamedTuple):
    """Formula of one aggregation: names of the parts, conversion of a value to parts, aggregate, bounds."""

    parts: tuple[str, ...]
    of: Callable[[Any], Sequence[Any]]
    aggregate: Callable[[Array, Array], Array]
    bounds: tuple[float, float]


def scores_of(task: Any) -> tuple[list[Score], list[str]]:
    """List the scores of a loaded task, and the metrics that are left out with the reason."""
    filters = [f["name"] for f in task.get_config("filter_list") or ()] or ["none"]
    directions, scores, left_out = task.higher_is_better(), [], []
    for metric, function in task.aggregation().items():
        aggregation = getattr(function, "__name__", type(function).__name__)
        aggregation = {"f1_score": "f1"}.get(aggregation, aggregation)
        if aggregation not in _FORMS:
            left_out.append(
                f"{metric} is left out: lm-eval aggregates it by {aggregation}, which has no sum over items, "
                "and so no interval and no paired difference here"
            )
            continue
        for name in filters:
            shown_name = metric if len(filters) == 1 else f"{metric},{name}"
            scores.append(Score(shown_name, metric, name, aggregation, bool(directions.get(metric, True))))
    return scores, left_out


def metric_of(score: Score) -> Metric:
    """Return the metric that aggregates a score's stored parts."""
    form = _FORMS[score.aggregation]
    low, high = form.bounds
    if score.aggregation in ("mean", "nanmean") and score.is_share:
        low, high = 0.0, 1.0
    return Metric(
        name=score.name,
        higher_is_better=score.higher_is_better,
        bounds=(low, high),
        parts=form.parts,
        score=lambda output, example: None,  # the parts come from lm-eval's process_results
        aggregate=form.aggregate,
        worst=lambda example: tuple(0.0 for _ in form.parts),
    )


def parts_of(score: Score, value: Any) -> Parts | None:
    """Convert lm-eval's result for a document to parts, or None; HarnessError: a share is outside [0, 1]."""
    form = _FORMS[score.aggregation]
    try:
        parts = tuple(map(float, form.of(value)))
    except (TypeError, ValueError):
        return None
    if len(parts) != len(form.parts) or not all(map(isfinite, parts)):
        return None
    if score.is_share and len(parts) == 1 and not 0 <= parts[0] <= 1:
        raise HarnessError(
            f"metric {score.name}: found {parts[0]:g} for one item; expected a share in [0, 1], as its "
            "name says; next: report the task, and leave it out meanwhile"
        )
    return parts


def primary(scores: Sequence[Score], requested: str, where: str) -> str:
    """Choose the deciding score: the requested one, else `acc`, the only share, or the only other one."""
    names = [s.name for s in scores]
    if requested:
        matching = [s.name for s in scores if requested in (s.name, s.metric)]
        if len(matching) == 1:
            return matching[0]
        problem = "which stands for several" if matching else "which is not among its scores"
        step = f"primary: {matching[0]}" if matching else did_you_mean(requested, names)
        expected = f"one of {', '.join(map(repr, matching or names))}"
        raise UserError(where, f"primary: {requested}, {problem}", expected, step)
    shares = [s.name for s in scores if s.is_share and s.higher_is_better]
    fallbacks = [n for n in names if n == "bits_per_byte"] or names
    candidates = [n for n in shares if n == "acc"] or shares or fallbacks
    if len(candidates) == 1:
        return candidates[0]
    found = f"several scores that could decide: {', '.join(map(repr, candidates))}"
    raise UserError(where, found, "one primary score", f'add primary: "{candidates[0]}" to the task')


def _counts(value: Any) -> Sequence[Any]:
    """Count one (gold, predicted) pair of binary labels: true and false positives and negatives."""
    gold, predicted = (int(v) for v in value)
    if {gold, predicted} - {0, 1}:
        raise ValueError("labels other than 0 and 1")
    return gold & predicted, (1 - gold) & predicted, gold & (1 - predicted), (1 - gold) & (1 - predicted)


def _brier(value: Any) -> Sequence[Any]:
    gold, probabilities = value
    hit = np.eye(len(probabilities))[int(gold)]
    return (float(np.sum((np.asarray(probabilities) - hit) ** 2)),)


def _sum(parts: Array, weights: Array, column: int) -> Array:
    return np.asarray(weights @ parts[:, column])


def _f1(parts: Array, weights: Array) -> Array:
    true, false, missed = (_sum(parts, weights, i) for i in range(3))
    return np.nan_to_num(ratio(2 * true, 2 * true + false + missed))


def _correlation(parts: Array, weights: Array) -> Array:
    tp, fp, fn, tn = (_sum(parts, weights, i) for i in range(4))
    return np.nan_to_num(ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))))


def _rate(parts: Array, weights: Array) -> Array:
    return ratio(_sum(parts, weights, 0), _sum(parts, weights, 1))


_LABELS = ("true_positive", "false_positive", "false_negative", "true_negative")
_FORMS: Mapping[str, _Form] = {
    "mean": _Form(("value",), lambda value: (value,), weighted_mean, (-inf, inf)),
    "nanmean": _Form(("value",), lambda value: (value,), weighted_mean, (-inf, inf)),
    "perplexity": _Form(
        ("logprob",), lambda value: (value,), lambda p, w: np.exp(-weighted_mean(p, w)), (0.0, inf)
    ),
    "weighted_perplexity": _Form(("logprob", "size"), tuple, lambda p, w: np.exp(-_rate(p, w)), (0.0, inf)),
    "bits_per_byte": _Form(("logprob", "bytes"), tuple, lambda p, w: -_rate(p, w) / np.log(2), (0.0, inf)),
    "f1": _Form(_LABELS, _counts, _f1, (0.0, 1.0)),
    "matthews_corrcoef": _Form(_LABELS, _counts, _correlation, (-1.0, 1.0)),
    "brier_score": _Form(("value",), _brier, weighted_mean, (0.0, 2.0)),
    "agg_inst_level_acc": _Form(
        ("followed", "asked"), lambda value: (sum(map(bool, value)), len(value)), _rate, (0.0, 1.0)
    ),
}
