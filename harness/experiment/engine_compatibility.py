"""Which candidates the engine or an endpoint cannot serve, said before anything runs."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import Problem
from harness.evaluation.candidates import is_served, served_base, source_of, trials
from harness.evaluation.session import Bench
from harness.models import openai_api, vllm
from harness.models.adapters import CONFIG
from harness.plugins import load as load_plugin
from harness.spec import Recipe


def engine_problems(bench: Bench, selected: Iterable[str], made: Mapping[str, Recipe]) -> Iterator[Problem]:
    """Yield what vLLM cannot serve of the selected candidates and of the adapters made for them."""
    if bench.experiment.engine == "transformers":
        return
    if vllm.installed() is None:
        yield vllm.absent()
    for name in selected:
        if served_base(bench, bench.experiment.candidates[name]).quantization:
            step = f"serve_on: bf16, or {vllm.OTHERWISE}"
            yield Problem(f"candidate {name}", "a base in NF4, and engine: vllm", "a base as it was", step)
    for name, recipe in made.items():
        adapters = [_adapter(trial) for _, trial in trials(recipe)]
        if any(adapter.get("use_dora") for adapter in adapters):
            found, step = "DoRA, and engine: vllm", f"use_dora: false, or {vllm.OTHERWISE}"
            yield Problem(f"candidate {name}", found, "a plain low-rank adapter", step)
        rank = max(adapter.get("r", 0) for adapter in adapters)
        if rank > vllm.MAX_RANK:
            found, step = f"an adapter of rank {rank}, and engine: vllm", f"a lower r, or {vllm.OTHERWISE}"
            yield Problem(f"candidate {name}", found, f"a rank of at most {vllm.MAX_RANK}", step)


def key_problems(bench: Bench, places: Mapping[str, str]) -> Iterator[Problem]:
    """Yield what is missing to ask candidates over HTTP now; `places` says where each is written."""
    for name, where in places.items():
        if is_served(bench, bench.experiment.candidates[name]):
            yield from openai_api.problems(_settings(bench, name), where)


def endpoint_problems(bench: Bench, places: Mapping[str, str]) -> Iterator[Problem]:
    """Yield what no server could answer of candidates; `places` says where each is written."""
    recipes, task = bench.experiment.candidates, bench.experiment.target
    for name, where in places.items():
        if not is_served(bench, recipes[name]):
            continue
        settings = _settings(bench, name)
        if settings.protocol == "chat" and (recipes[name].answer == "rank" or not openai_api.can_chat(task)):
            found = f"{name}, asked by chat, and a target that needs token ids or their log-probabilities"
            expected = "a target that is answered in chat, and answer: generate"
            yield Problem(where, found, expected, "protocol: completions, where the server has it")


def _settings(bench: Bench, name: str) -> openai_api.Settings:
    return openai_api.Settings(**source_of(bench, bench.experiment.candidates[name]).params)


def _adapter(recipe: Recipe) -> dict[str, Any]:
    """Return what is known of a recipe's adapter: its parameters, or of one made elsewhere its file."""
    if not recipe.path:
        params: dict[str, Any] = load_plugin("methods", recipe.method).Params(**recipe.params).model_dump()
        return params
    try:
        config = json.loads((Path(recipe.path) / CONFIG).read_text("utf-8"))
    except (OSError, ValueError):
        return {}  # the method says what is wrong with it
    return config if isinstance(config, dict) else {}
