"""Answer lm-eval's requests with a Candidate, tokenised as lm-eval's own model does.

Invariant: a pair of texts has the same token ids as in lm-eval: spaces at the end of the context move to the
continuation, both are tokenised together, and an empty context is the beginning- or end-of-sequence token. A
prompt that is too long is an error, or is cut on request.
Source: lm_eval/api/model.py (TemplateLM), lm_eval/models/huggingface.py (HFLM), version 0.4.13.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from harness.models import Candidate
from harness.records import Encoded, Likelihood, Limits, Output, PromptText

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


class EncodedRequest(NamedTuple):
    """A request with its token ids, and lm-eval's generation settings."""

    encoded: Encoded
    settings: Mapping[str, Any]


def answer(
    candidate: Candidate, instances: Sequence[Any], encoded: Sequence[Encoded] = (), *, cut: bool = False
) -> list[RequestResponse | UnfitRequest]:
    """Answer requests of any of lm-eval's types, in order, already `encoded` or not.

    With `cut` a prompt that is too long loses its beginning.
    """
    ids = encoded or encode_requests(candidate, instances)
    responses: dict[int, RequestResponse | UnfitRequest] = {}
    for kind, route in _ROUTES.items():
        chosen = {
            i: EncodedRequest(request_ids, x.args[1] if kind == _GENERATE else {})
            for i, (x, request_ids) in enumerate(zip(instances, ids, strict=True))
            if x.request_type == kind
        }
        responses.update(route(candidate, chosen, cut) if chosen else {})
    return [responses[i] for i in range(len(instances))]


def encode_requests(candidate: Candidate, instances: Sequence[Any]) -> list[Encoded]:
    """Encode requests as lm-eval does for causal models; each text once, all in one call.

    The context of a scored whole text is only the prefix token; that of a prompt is the whole prompt.
    """
    prompts = [_prompts(instance) for instance in instances]
    ids = iter(candidate.encode_all([text for texts in prompts for text in texts]))
    return [
        _JOINS[instance.request_type]([next(ids) for _ in texts])
        for instance, texts in zip(instances, prompts, strict=True)
    ]


def _prompts(instance: Any) -> list[PromptText]:
    """List the texts of a request whose token ids form its own."""
    text, *others = instance.args
    if instance.request_type == _GENERATE:
        return [_plain(text)]
    if instance.request_type == _ROLLING:
        return [PromptText((), " ", chat_template=False), *([_plain(text)] if text else [])]
    context = text.rstrip()
    continuation = text[len(context) :] + others[0]
    if not context:
        return [PromptText((), continuation, chat_template=False, is_written=True)]
    return [_plain(context), _plain(context + continuation)]


def _plain(text: str) -> PromptText:
    """Return a text as lm-eval writes it, possibly with a chat template applied."""
    return PromptText(({"role": "user", "content": text},), chat_template=False, is_written=True)


def _join_pair(ids: Sequence[Encoded]) -> Encoded:
    """Return a continuation after its context; a tokenizer may repeat the prefix token."""
    first, *others = ids
    if others:
        context, whole = first.context, others[0].context
        return Encoded(context, whole[len(context) :], whole[: len(context)] != context)
    is_repeated = first.continuation[:1] == first.context and len(first.continuation) > 1
    return Encoded(first.context, first.continuation[1:]) if is_repeated else first


def _join_text(ids: Sequence[Encoded]) -> Encoded:
    """Return a whole text after the prefix token."""
    prefix, *text = ids
    return Encoded(prefix.context[:1], text[0].context if text else ())


def windows(ids: Sequence[int], prefix: int, length: int) -> Iterator[Encoded]:
    """Cut a text into windows of at most `length` tokens, each token predicted once.

    The first window follows the prefix token; each later one has as much of the preceding text as fits, at
    least one token.
    """
    for start in range(0, len(ids), length):
        end = min(start + length, len(ids))
        if start == 0:
            yield Encoded((prefix,), tuple(ids[:end]))
        else:
            yield Encoded(tuple(ids[max(end - length - 1, 0) : start]), tuple(ids[start:end]))


def _unfit(n_tokens: int, room: int) -> UnfitRequest:
    return UnfitRequest(f"prompt of {n_tokens} tokens, the context holds {room}", n_tokens)


def _score_requests(candidate: Candidate, pairs: Sequence[Encoded]) -> list[Likelihood]:
    return candidate.loglikelihood([(p.context, p.continuation) for p in pairs])


def _likelihoods(
    candidate: Candidate, requests: Mapping[int, EncodedRequest], cut: bool
) -> dict[int, RequestResponse | UnfitRequest]:
    room = candidate.max_context
    pairs = {i: _drop_beginning(x.encoded, room) if cut else x.encoded for i, x in requests.items()}
    sizes = {i: _n_read(p) for i, p in pairs.items()}
    out: dict[int, RequestResponse | UnfitRequest] = {
        i: _unfit(n, room) for i, n in sizes.items() if n > room
    }
    out |= {
        i: UnfitRequest("a continuation without a token of its own", sizes[i])
        for i, p in pairs.items()
        if not p[1]
    }
    fit = {i: p for i, p in pairs.items() if i not in out}
    scores = _score_requests(candidate, list(fit.values()))
    return out | {i: RequestResponse(tuple(s), p) for (i, p), s in zip(fit.items(), scores, strict=True)}


def _n_read(pair: Encoded) -> int:
    """Count the tokens that the model reads: all but the last, which is only predicted."""
    return len(pair.context) + len(pair.continuation) - 1


def _drop_beginning(pair: Encoded, room: int) -> Encoded:
    """Drop the part of the context that does not fit, keeping at least one token."""
    excess = min(max(_n_read(pair) - room, 0), len(pair.context) - 1)
    return pair._replace(context=pair.context[excess:])


def _score_whole_texts(
    candidate: Candidate, requests: Mapping[int, EncodedRequest], _cut: bool
) -> dict[int, RequestResponse | UnfitRequest]:
    """Score whole texts, the windows of all texts at once."""
    texts = {
        i: list(windows(x.encoded.continuation, x.encoded.context[0], candidate.max_context))
        for i, x in requests.items()
    }
    scores = iter(_score_requests(candidate, [w for parts in texts.values() for w in parts]))
    responses: dict[int, RequestResponse | UnfitRequest] = {}
    for i, parts in texts.items():
        total = sum(next(scores).logprob for _ in parts)
        ids = tuple(token for w in parts for token in w.continuation)
        responses[i] = RequestResponse(total, Encoded(requests[i].encoded.context, ids))
    return responses


def _generate(
    candidate: Candidate, requests: Mapping[int, EncodedRequest], cut: bool
) -> dict[int, RequestResponse | UnfitRequest]:
    """Generate answers, requests with the same limits together."""
    prompts = {i: x.encoded.context for i, x in requests.items()}
    limits = {i: limits_of(x.settings) for i, x in requests.items()}
    responses: dict[int, RequestResponse | UnfitRequest] = {}
    for i, prompt in prompts.items():
        room = candidate.max_context - limits[i].max_new_tokens
        if cut and room > 0:
            prompts[i] = prompt[-room:]
        elif len(prompt) > room:
            responses[i] = _unfit(len(prompt), room)
    for wanted in dict.fromkeys(limits.values()):
        fit = [i for i, limit in limits.items() if limit == wanted and i not in responses]
        outputs = candidate.generate([prompts[i] for i in fit], wanted) if fit else []
        responses.update(
            {i: RequestResponse(o.text, Encoded(prompts[i]), o) for i, o in zip(fit, outputs, strict=True)}
        )
    return responses


def limits_of(settings: Mapping[str, Any]) -> Limits:
    """Read from a task's `generation_kwargs` where an answer ends."""
    until = settings.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(until)
    token_limits = (settings[name] for name in _TOKEN_LIMITS if settings.get(name) is not None)
    return Limits(int(next(token_limits, _MAX_NEW_TOKENS)), tuple(s for s in stop if s))


def is_sampled(settings: Mapping[str, Any]) -> bool:
    """Tell from a task's `generation_kwargs` whether answers are sampled; `do_sample` takes precedence."""
    sampled = settings.get("do_sample")
    return bool(sampled if sampled is not None else float(settings.get("temperature") or 0) > 0)


_ROUTES = {_PAIR: _likelihoods, _ROLLING: _score_whole_texts, _GENERATE: _generate}
_JOINS: Mapping[str, Callable[[Sequence[Encoded]], Encoded]] = {
    _PAIR: _join_pair,
    _ROLLING: _join_text,
    _GENERATE: itemgetter(0),
}
