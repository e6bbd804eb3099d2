"""KL from the starting model to the tuned one on general prompts, as a penalty on the loss.

Invariant: the penalty is strength · KL(start ‖ tuned) in nats per token of general answers.
Source: learning without forgetting, Li and Hoiem 2017 (arXiv:1606.09282).
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from pydantic import Field

from harness import regularizers
from harness.errors import CandidateFailed
from harness.models.later import torch
from harness.spec import Spec

_CHUNK = 64  # tokens whose logits are held at a time
Head = Callable[["torch.Tensor"], "torch.Tensor"]  # hidden states (t, d) to logits (t, v) in fp32


class Params(Spec):
    """`strength`, the number of general `rows`, and how many of them each step reads, `rows_per_step`.

    They are general prompts with the base's answers, or rows of `data`.
    """

    strength: float = Field(1.0, gt=0, allow_inf_nan=False)
    rows: int = Field(64, ge=1, le=1024)
    rows_per_step: int = Field(2, ge=1, le=64)
    data: str | None = None


RESCUE = regularizers.rescue_by_strength(
    "kl", Params, (0.3, 3.0), "KL to the start on general prompts as a penalty", place=1
)


def cost(params: Params, n_rows: int) -> float:
    """Return the work of a step that also reads general rows, as a multiple of a plain step.

    A row that is read alone took as long as two of a batch of four (smollm2-135m, two cores).
    """
    return 1 + 2 * params.rows_per_step / n_rows


def sample(context: regularizers.MixContext, params: Params) -> regularizers.Mixture:
    """Sample the general rows."""
    return regularizers.general_mixture(regularizers.GENERAL, params.rows, params.data, context)


def penalty(start: regularizers.Start, params: Params) -> regularizers.Penalty:
    """Return the penalty, one term for each general row that the step reads."""
    if not start.rows:
        raise CandidateFailed("no general rows to measure the KL on", "another data of kl")
    model, head = start.model, start.model.get_output_embeddings()
    product: Head = partial(_multiply, head)
    finish = _finish_of(model.config)
    tuned: Head = lambda states: finish(product(states))  # noqa: E731
    with torch.no_grad():
        start_states = [_answer_states(model, row) for row in start.rows]
        is_trained = any(parameter.requires_grad for parameter in head.parameters())
        start_head = tuned
        if is_trained:  # what the head computes before training
            bias = product(torch.zeros_like(start_states[0][:1]))  # (1, v)
            unit = torch.eye(start_states[0].shape[-1], device=start_states[0].device)
            dtype, matrix = head.weight.dtype, (product(unit) - bias).to(head.weight.dtype)  # (d, v)
            start_head = lambda states: finish((states.to(dtype) @ matrix).float() + bias)  # noqa: E731
        ids = torch.tensor([start.rows[0].ids], device=model.device)
        with _eval_mode(model):
            model_logits = model(input_ids=ids, logits_to_keep=2, use_cache=False).logits[0, 0].float()
        if not torch.allclose(model_logits, start_head(start_states[0][-1:])[0], rtol=0.05, atol=0.05):
            found = "this model's logits are more than a product with its last hidden states"
            raise CandidateFailed(found, "regularize: ewc or l2_sp in place of kl")
    n = min(params.rows_per_step, len(start_states))

    def terms(step: int) -> "Iterator[torch.Tensor]":
        for i in random.Random(f"{start.seed}/kl/{step}").sample(range(len(start_states)), n):
            states = _answer_states(model, start.rows[i])
            yield params.strength / n * mean_kl((start_states[i], start_head), (states, tuned))

    return terms


def mean_kl(start: "tuple[torch.Tensor, Head]", tuned: "tuple[torch.Tensor, Head]") -> "torch.Tensor":
    """Return the mean KL in nats between two sets of hidden states (t, d), each given with its head."""
    from torch.utils.checkpoint import checkpoint

    def sum_divergence(start_states: Any, states: Any) -> Any:
        p, q = start[1](start_states).log_softmax(-1), tuned[1](states).log_softmax(-1)
        return torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True)

    chunk_pairs = zip(start[0].split(_CHUNK), tuned[0].split(_CHUNK), strict=True)
    sums = [checkpoint(sum_divergence, *pair, use_reentrant=False) for pair in chunk_pairs]
    return torch.stack(sums).sum() / len(start[0])


def _finish_of(config: Any) -> Head:
    """Return what a model does to products (t, v): a scale (Cohere, Granite), then a soft cap (Gemma 2)."""
    cap = getattr(config, "final_logit_softcapping", None)
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)

    def finish(logits: "torch.Tensor") -> "torch.Tensor":
        scaled = logits if scale == 1 else logits * scale
        return cap * torch.tanh(scaled / cap) if cap else scaled

    return finish


def _multiply(head: Any, states: "torch.Tensor") -> "torch.Tensor":
    with _eval_mode(head):
        logits: torch.Tensor = head(states.to(head.weight.dtype)).float()
    return logits


@contextmanager
def _eval_mode(module: Any) -> Iterator[None]:
    training = module.training
    module.eval()
    yield
    module.train(training)


def _answer_states(model: Any, row: regularizers.GeneralRow) -> "torch.Tensor":
    """Return the last hidden states (t, d) that predict a row's answer, without dropout or noise."""
    ids = torch.tensor([row.ids], device=model.device)
    # By index: in bf16 on a CPU the logits of a slice of one position take 80 ms, forty times as long.
    kept = torch.zeros(1, dtype=torch.long, device=model.device)
    with _eval_mode(model):
        output = model(input_ids=ids, output_hidden_states=True, logits_to_keep=kept, use_cache=False)
    states: torch.Tensor = output.hidden_states[-1][0, row.start - len(row.ids) - 1 : -1]
    return states
