"""Another candidate's adapter at a share of its scale, between the base (0) and the fine-tune (1).

Invariant: only `lora_alpha`, which determines an adapter's scale in PEFT, is changed. Source: Wortsman et al.
2022 (arXiv:2109.01903), who interpolate weights; for low-rank adapters that is the same.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field

from harness.errors import CandidateFailed, Problem
from harness.methods._shared import RESCUE, requires_init
from harness.models.weight_files import CONFIG, WEIGHTS, describe_beside_low_rank, refuse_moved_base
from harness.plugins import InitWeights, Method, MethodChecks, RescueSituation, TrialSetting
from harness.records import TrainingRecord, parse_json
from harness.spec import Spec
from harness.training import FitContext, Weights, made_weights


class Params(Spec):
    """`scale` is the share of the adapter's own scale."""

    scale: float = Field(0.5, gt=0, le=1)


def init_problems(params: Params, init: InitWeights, where: str) -> Iterator[Problem]:
    """Yield a problem for parts of the adapter that do not follow its scale, as far as known."""
    if found := _describe_beside_scale(init.adapter):
        yield Problem(where, f"an adapter {found}", "one of low-rank matrices alone", "another init_from")


def fit(context: FitContext, params: Params) -> Weights:
    """Copy the adapter that `init_from` names, with its scale multiplied."""
    if context.init is None:
        raise CandidateFailed("scaled without init_from", "init_from: the candidate whose adapter is meant")
    start, folder = time.perf_counter(), context.folder / "adapter"
    config = parse_json((context.init / CONFIG).read_text("utf-8"))
    found = _describe_beside_scale({"peft_type": None, **config})
    if found := found or ("" if config.get("lora_alpha") else "without lora_alpha"):
        raise CandidateFailed(f"an adapter {found}", "a candidate whose adapter is low-rank matrices alone")
    refuse_moved_base(config)
    config["lora_alpha"] = _times(params.scale, config["lora_alpha"])
    if pattern := config.get("alpha_pattern"):
        config["alpha_pattern"] = {name: _times(params.scale, alpha) for name, alpha in pattern.items()}
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")
    shutil.copy(context.init / WEIGHTS, folder / WEIGHTS)
    made = TrainingRecord(copying_s=round(time.perf_counter() - start, 3))
    return made_weights(context, "adapter", made)


def _describe_beside_scale(config: Mapping[str, Any]) -> str:
    """Name the part of an adapter with this configuration that does not follow its scale; empty if none."""
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        return f"of the kind {kind}, which has no lora_alpha"
    if config.get("use_dora"):
        return "with use_dora, whose magnitudes do not follow its scale"
    more = describe_beside_low_rank({**config, "lora_bias": False})  # LoRA's bias is scaled with B
    return more and f"with {more}, which has no scale"


def _list_settings(at: RescueSituation) -> Sequence[TrialSetting] | str:
    found = _describe_beside_scale(at.params)
    return f"it is an adapter {found}" if found else RESCUE.settings(at)


def _times(scale: float, alpha: float) -> float:
    """Multiply; whole numbers stay integers, as PEFT writes them."""
    product = scale * alpha
    return int(product) if product == int(product) else product


METHOD = Method(
    params=Params,
    fit=fit,
    makes="adapter",
    seeded=True,
    init_from="adapter",
    interpolates=True,
    checks=MethodChecks(requires_init("the candidate whose adapter is scaled"), of_init=init_problems),
    rescue=RESCUE._replace(settings=_list_settings),
)
