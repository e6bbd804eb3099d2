"""Parts of the model that a training leaves out: layers, halves of layers, values that a layer returns."""

import random
import re
from collections.abc import Collection, Sequence
from typing import Any

from pydantic import Field, model_validator

from harness.errors import CandidateFailed
from harness.models.later import torch
from harness.plugins import RescueSituation, RescueStep, TrialSetting
from harness.spec import Spec

_OF_A_LAYER = re.compile(r"(?P<stack>.*?)\.(?P<layer>\d+)\.(?P<module>.+)\.[^.]+")


def decoder_layers(model: Any) -> "torch.nn.ModuleList":
    """Return the longest list of modules of a model: its decoder layers."""
    return max((m for m in model.modules() if isinstance(m, torch.nn.ModuleList)), key=len)


class Dropout:
    """Dropout on the output of each attention and each MLP while the whole model is trained.

    Source: Srivastava et al. 2014; placed as in Vaswani et al. 2017 (arXiv:1706.03762), section 5.4.
    """

    DRAWS = True

    class Params(Spec):
        """`rate` is the share of each output's values that are dropped; the others are scaled up."""

        rate: float = Field(0.1, gt=0, lt=1)

    @staticmethod
    def prepare(model: Any, params: Params) -> None:
        """Add dropout to the output of each layer's attention and MLP in training."""

        def drop(module: Any, inputs: Any, output: Any) -> Any:
            if not module.training:
                return output
            dropout = torch.nn.functional.dropout
            if isinstance(output, tuple):
                return (dropout(output[0], params.rate), *output[1:])
            return dropout(output, params.rate)

        for layer in decoder_layers(model):
            sublayers = {  # norms have only vectors
                name: sublayer
                for name, sublayer in layer.named_children()
                if any(p.ndim > 1 for p in sublayer.parameters())
            }
            if len(sublayers) != 2:
                found = f"dropout for layers of {', '.join(sublayers)}, which are not attention and MLP"
                raise CandidateFailed(found, "no dropout in regularize")
            for sublayer in sublayers.values():
                sublayer.register_forward_hook(drop)


class Freeze:
    """Decoder layers that stay frozen while the others are trained.

    Source: half fine-tuning, Hui et al. 2024 (arXiv:2404.18466), here by whole layers.
    """

    class Params(Spec):
        """The number of `first` layers to freeze, or of last layers to train with `all_but_last`.

        `first` also freezes the input embeddings; `all_but_last` freezes everything but these layers.
        """

        first: int | None = Field(None, ge=1)
        all_but_last: int | None = Field(None, ge=1)

        @property
        def n(self) -> int:
            """Number of layers that are named."""
            return self.first or self.all_but_last or 0

        @model_validator(mode="after")
        def _check_choice(self) -> "Freeze.Params":
            if (self.first is None) == (self.all_but_last is None):
                raise ValueError("freeze takes first: N or all_but_last: N")
            return self

    @staticmethod
    def _list_settings(case: RescueSituation) -> list[TrialSetting] | str:
        if not case.n_layers or case.n_layers < 2:
            return "the number of layers is not known"
        if case.present is not None:
            return "a part of the layers is left out already"
        half = case.n_layers // 2
        summary = f"the first {half} of {case.n_layers} layers left as they are"
        frozen = rf"\D*\.(?:{'|'.join(map(str, range(half)))})\..*"
        return [TrialSetting({"first": half}, "half", summary, leaves_out=frozen)]

    RESCUE = RescueStep("half", _list_settings, place=7)

    @staticmethod
    def layer_problem(params: Params, n_layers: int) -> str:
        """Describe that the model has too few layers to freeze or train so many; empty if it has enough."""
        return f"freeze names {params.n} layers, and the model has {n_layers}" if params.n >= n_layers else ""

    @staticmethod
    def prepare(model: Any, params: Params) -> None:
        """Freeze layers of a loaded model."""
        layers, n = decoder_layers(model), params.n
        if too_few := Freeze.layer_problem(params, len(layers)):
            raise CandidateFailed(too_few, "fewer layers in freeze")
        if params.first:
            model.get_input_embeddings().requires_grad_(False)
            layers[:n].requires_grad_(False)
        else:
            model.requires_grad_(False)
            layers[-n:].requires_grad_(True)


class Half:
    """Half fine-tuning: in each round half of each layer's matrices is trained, each time another half.

    Invariant: in each layer half of the modules of each kind are chosen (attention, MLP, norms). Parameters
    outside the layers are always trained. Source: Hui et al. 2024 (arXiv:2404.18466).
    """

    class Params(Spec):
        """Number of `rounds` of the training, each with its own half."""

        rounds: int = Field(1, ge=1, le=1000)

    @staticmethod
    def select(names: Sequence[str], progress: float, params: Params, seed: int) -> Collection[str]:
        """Return the parameters that are trained at a share of all steps, in [0, 1)."""
        turn = min(int(progress * params.rounds), params.rounds - 1)
        draw = random.Random(f"{seed}/half/{turn}")
        selected: set[str] = set()
        groups: dict[tuple[str, int, str], dict[str, list[str]]] = {}
        for name in names:
            match = _OF_A_LAYER.fullmatch(name)
            if match is None:
                selected.add(name)
                continue
            module = match["module"]
            kind = module.partition(".")[0] if "." in module else ""
            group = groups.setdefault((match["stack"], int(match["layer"]), kind), {})
            group.setdefault(module, []).append(name)
        for (_, layer, _), modules in sorted(groups.items()):
            n = (len(modules) + (layer + turn) % 2) // 2
            selected.update(name for module in draw.sample(sorted(modules), n) for name in modules[module])
        return selected


PLUGINS = {"dropout": Dropout, "freeze": Freeze, "half": Half}
