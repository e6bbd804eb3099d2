"""Elastic weight consolidation: a pull back to the start, stronger where general text depends on a weight.

Invariant: the penalty is strength / 2 · Σ F (W − W₀)², with F the diagonal at the start of the Fisher
information of one token of the general rows' answers, so the sum is about strength · KL in nats per token.
Source: Kirkpatrick et al. 2017 (arXiv:1612.00796), equation 3, with labels drawn from the model (Kunstner et
al. 2019, arXiv:1905.12558); on an adapter of ΔW = BA.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from pydantic import Field

from harness import regularizers
from harness.errors import CandidateFailed
from harness.models.later import torch
from harness.regularizers import _weights
from harness.spec import Spec


class Params(Spec):
    """`strength`, and the number of general `rows` used to estimate the Fisher information.

    They are general prompts with the base's answers, or rows of `data`.
    """

    strength: float = Field(gt=0, allow_inf_nan=False)
    rows: int = Field(64, ge=1, le=1024)
    data: str | None = None


RESCUE = regularizers.rescue_by_strength("ewc", Params, (30.0,), "elastic weight consolidation", place=3)
problem = _weights.problem


def sample(context: regularizers.MixContext, params: Params) -> regularizers.Mixture:
    """Sample the general rows."""
    return regularizers.general_mixture(regularizers.GENERAL, params.rows, params.data, context)


def penalty(start: regularizers.Start, params: Params) -> regularizers.Penalty:
    """Return the penalty, one term per weight; it keeps one fp32 number per weight."""
    fisher = fisher_diagonal(start.model, start.rows, start.seed)
    moved = _weights.displacements(start.model)

    def terms(step: int) -> "Iterator[torch.Tensor]":
        for name, displacement in moved.items():
            yield params.strength / 2 * (fisher[name] * displacement().square()).sum()

    return terms


def fisher_diagonal(
    model: Any, rows: tuple[regularizers.GeneralRow, ...], seed: int
) -> "dict[str, torch.Tensor]":
    """Estimate the diagonal of the Fisher information of one token, by the names of `displacements`.

    The labels at each position of a row are drawn from the model, so the expected squared gradient of their
    joint log-probability is the sum over its tokens.
    """
    if not rows:
        raise CandidateFailed("no general rows to estimate the Fisher information on", "another data of ewc")
    generator = torch.Generator().manual_seed(seed)
    squares: dict[str, torch.Tensor] = {}
    training, n_tokens = model.training, sum(len(row.ids) - row.start for row in rows)
    model.eval()
    model.zero_grad()
    for row in rows:
        with _square_gradients(model, squares):
            ids = torch.tensor([row.ids], device=model.device)
            keep = len(row.ids) - row.start + 1
            logits = model(input_ids=ids, logits_to_keep=keep, use_cache=False).logits[0, :-1]  # (n, v)
            logprobs = logits.float().log_softmax(-1)
            drawn = torch.multinomial(logprobs.detach().exp().cpu(), 1, generator=generator)
            logprobs.gather(1, drawn.to(logprobs.device)).sum().backward()
    model.zero_grad()
    model.train(training)
    return {name: square / n_tokens for name, square in squares.items()}


@contextmanager
def _square_gradients(model: Any, squares: "dict[str, torch.Tensor]") -> Iterator[None]:
    """Add the squared gradients of one backward pass to `squares`; hooks on layers read those of ΔW."""
    with ExitStack() as hooks:
        for name, layer in _weights.find_adapted_layers(model).items():
            if isinstance(layer.get_base_layer(), torch.nn.Embedding):  # token ids cannot be multiplied
                why = "for which no Fisher information can be estimated"
                found = f"an adapter of {name}, an embedding, {why}"
                raise CandidateFailed(found, "target_modules without it, or regularize: l2_sp or kl")
            hooks.callback(layer.register_forward_hook(_reader(name, layer, squares)).remove)
        yield
    for name, parameter in _weights.find_plain_parameters(model).items():
        if parameter.grad is not None:
            _add(squares, name, parameter.grad.float().square())
            parameter.grad = None


def _reader(name: str, layer: Any, squares: "dict[str, torch.Tensor]") -> Any:
    """Return a forward hook that computes a linear layer's gradient: output gradients times inputs."""

    def forward(module: Any, inputs: Any, output: Any) -> None:
        layer_in = inputs[0].detach().float().flatten(0, 1)  # (t, in)

        def backward(gradient: Any) -> None:
            grad = gradient.float().flatten(0, 1).T @ layer_in  # (out, in)
            _add(squares, name, (grad.T if getattr(layer, "fan_in_fan_out", False) else grad).square())

        output.register_hook(backward)

    return forward


def _add(squares: "dict[str, torch.Tensor]", name: str, square: "torch.Tensor") -> None:
    squares[name] = squares[name] + square if name in squares else square
