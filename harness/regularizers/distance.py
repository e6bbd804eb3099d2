"""Penalties on the distance of the weights from the start of training, each weight counting the same or not.

Invariant: for an adapter the distance is that of ΔW = BA. One fp32 tensor is held at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from pydantic import Field

from harness import regularizers
from harness.errors import CandidateFailed
from harness.models.later import peft, torch
from harness.spec import Spec

# PEFT's families whose `get_delta_weight` is added to a weight matrix.
ADDITIVE = ("ADALORA", "C3A", "FOURIERFT", "GRALORA", "LOHA", "LOKR", "LORA", "RANDLORA", "VBLORA", "VERA")
_ADAPTER = "default"
_COPIED = ".modules_to_save."


def find_problem(params: Mapping[str, Any]) -> str:
    """Describe the method parameters that make weights other than a sum with ΔW; empty if there are none."""
    family = params.get("peft_type", "LORA")
    if family not in ADDITIVE:
        return f"an adapter of the family {family}, which is not added to weight matrices"
    if params.get("use_dora"):
        return "use_dora, whose magnitudes are not added to weight matrices"
    if (bias := params.get("bias", "none")) != "none":
        return f"bias: {bias}, whose biases are in no weight matrix"
    if params.get("lora_bias"):
        return "lora_bias, whose biases are in no weight matrix"
    if params.get("trainable_token_indices"):
        return "trainable_token_indices, which replace rows of the embeddings"
    return ""


def displacements(model: Any) -> "dict[str, Callable[[], torch.Tensor]]":
    """Return a displacement for each trained weight, by name; for an adapter one for each adapted weight."""
    return {
        **{name: _displace_adapter(layer) for name, layer in find_adapted_layers(model).items()},
        **{name: _displace_parameter(parameter) for name, parameter in find_plain_parameters(model).items()},
    }


def find_adapted_layers(model: Any) -> dict[str, Any]:
    """Return the layers that an adapter adds to, by name; empty for a model without an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(model, peft.PeftModel):
        return {}
    config = vars(model.peft_config[_ADAPTER])
    family = config["peft_type"]
    if cause := find_problem(config | {"peft_type": getattr(family, "value", family)}):
        raise CandidateFailed(f"no penalty on ΔW is defined for {cause}", "another method, or regularize: kl")
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}


def find_plain_parameters(model: Any) -> dict[str, Any]:
    """Return the directly trained parameters, by name; with an adapter only those of copied modules."""
    # A new head is not included: it was never published, so there is no start to pull it to.
    with_adapter = isinstance(model, peft.PeftModel)
    base_model = model.get_base_model() if with_adapter else model
    published = base_model if base_model.get_output_embeddings() is not None else base_model.base_model
    published_ids = {id(parameter) for parameter in published.parameters()}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and id(parameter) in published_ids
        and (not with_adapter or _COPIED in name)
    }


def _displace_parameter(parameter: Any) -> "Callable[[], torch.Tensor]":
    start = parameter.detach().clone()
    return lambda: parameter.float() - start.float()


def _displace_adapter(layer: Any) -> "Callable[[], torch.Tensor]":
    start = layer.get_delta_weight(_ADAPTER).detach().float()
    if not start.any():  # an adapter that starts at zero: no matrix is kept
        return lambda: layer.get_delta_weight(_ADAPTER).float()
    return lambda: layer.get_delta_weight(_ADAPTER).float() - start


def _pull_back(
    model: Any, strength: float, weigh: Callable[[str, Any], Any] = lambda name, squares: squares
) -> regularizers.Penalty:
    """Return strength / 2 times the sum of the squared displacements, weighed by name: a term per weight."""
    displacement_by_name = displacements(model)

    def terms(step: int) -> "Iterator[torch.Tensor]":
        for name, displacement in displacement_by_name.items():
            yield strength / 2 * weigh(name, displacement().square()).sum()

    return terms


class L2Sp:
    """Squared distance from the starting point as a penalty on the loss, strength / 2 · ‖W − W₀‖².

    Source: L2-SP, Li et al. 2018 (arXiv:1802.01483), equation 2.
    """

    class Params(Spec):
        """`strength` of the pull back to the start; a method's `weight_decay` pulls to zero in addition."""

        strength: float = Field(gt=0, allow_inf_nan=False)

    RESCUE = regularizers.rescue_by_strength(
        "l2_sp", Params, (0.01,), "squared distance from the start as a penalty", place=4
    )
    problem = find_problem

    @staticmethod
    def penalty(start: regularizers.Start, params: Params) -> regularizers.Penalty:
        """Return the penalty, one term for each weight."""
        return _pull_back(start.model, params.strength)


class Ewc:
    """Elastic weight consolidation: a pull back to the start, stronger where general text needs a weight.

    Invariant: the penalty is strength / 2 · Σ F (W − W₀)², with F the diagonal at the start of the Fisher
    information of one token of the general rows' answers, so the sum is about strength · KL in nats per
    token. Source: Kirkpatrick et al. 2017 (arXiv:1612.00796), equation 3, with labels drawn from the model
    (Kunstner et al. 2019, arXiv:1905.12558).
    """

    class Params(Spec):
        """`strength`, and the number of general `rows` used to estimate the Fisher information.

        They are general prompts with the base's answers, or rows of `data`.
        """

        strength: float = Field(gt=0, allow_inf_nan=False)
        rows: int = Field(64, ge=1, le=1024)
        data: str | None = None

    RESCUE = regularizers.rescue_by_strength("ewc", Params, (30.0,), "elastic weight consolidation", place=3)
    problem = find_problem

    @staticmethod
    def sample(context: regularizers.MixContext, params: Params) -> regularizers.Mixture:
        """Sample the general rows."""
        return regularizers.general_mixture(regularizers.GENERAL, params.rows, params.data, context)

    @staticmethod
    def penalty(start: regularizers.Start, params: Params) -> regularizers.Penalty:
        """Return the penalty, one term per weight; it keeps one fp32 number per weight."""
        fisher = fisher_diagonal(start.model, start.rows, start.seed)
        return _pull_back(start.model, params.strength, lambda name, squares: fisher[name] * squares)


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
            sampled_ids = torch.multinomial(logprobs.detach().exp().cpu(), 1, generator=generator)
            logprobs.gather(1, sampled_ids.to(logprobs.device)).sum().backward()
    model.zero_grad()
    model.train(training)
    return {name: square / n_tokens for name, square in squares.items()}


@contextmanager
def _square_gradients(model: Any, squares: "dict[str, torch.Tensor]") -> Iterator[None]:
    """Add the squared gradients of one backward pass to `squares`; hooks on layers read those of ΔW."""
    with ExitStack() as hooks:
        for name, layer in find_adapted_layers(model).items():
            if isinstance(layer.get_base_layer(), torch.nn.Embedding):  # token ids cannot be multiplied
                reason = "for which no Fisher information can be estimated"
                found = f"an adapter of {name}, an embedding, {reason}"
                raise CandidateFailed(found, "target_modules without it, or regularize: l2_sp or kl")
            hooks.callback(layer.register_forward_hook(_reader(name, layer, squares)).remove)
        yield
    for name, parameter in find_plain_parameters(model).items():
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


PLUGINS = {"l2_sp": L2Sp, "ewc": Ewc}
