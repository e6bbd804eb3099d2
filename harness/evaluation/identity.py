"""What a set of rows depends on: who was asked what and how, and how the answers are scored.

Invariant: what only judges answers is in `scoring_digest` alone, so a changed metric leaves the rest
as it was and stored answers can be scored again.
"""

from typing import NamedTuple

from harness import metrics, plugins
from harness.data import SCORING, Split
from harness.evaluation.session import Bench, Measured
from harness.models import openai_api
from harness.provenance.code_versions import versions_of
from harness.records import RowsIdentity, digest
from harness.spec import Task, metric_name
from harness.training import Weights


def identity(
    bench: Bench, weights: Weights, m: Measured, split: Split, prompting: str, answer: str
) -> RowsIdentity:
    """Name everything that the rows of a task's split depend on, for weights that are asked so."""
    how = _computed(bench, weights)
    return RowsIdentity(
        weights.digest,
        how.template_digest,
        m.task.name,
        rows_version(m.task, m.versions[split]),
        split,
        prompting,
        answer,
        how.precision,
        how.engine,
        how.layout_digest,
        how.device_class,
        _scoring_digest(m),
    )


class _Computed(NamedTuple):
    """How answers are computed, apart from the weights; each as in `RowsIdentity`."""

    template_digest: str
    precision: str
    engine: str
    layout_digest: str
    device_class: str


def _computed(bench: Bench, weights: Weights) -> _Computed:
    """Say how weights are asked here; of an endpoint no more is known than who writes its prompts."""
    base, machine = weights.source or bench.source, bench.machine
    if weights.kind in openai_api.PROTOCOLS:
        template = base.template_digest if weights.kind == "completions" else ""
        engine, layout = openai_api.identity(weights.kind)
        return _Computed(template, openai_api.UNKNOWN, engine, layout, openai_api.UNKNOWN)
    engine, layout = ("text", digest("text")) if weights.kind == "classifier" else bench.engine(base)
    return _Computed(base.template_digest, machine.precision, engine, layout, machine.device)


def rows_version(task: Task, version: str) -> str:
    """Return the version of what rows answer: definition and items by theirs, and the code that evaluates."""
    return digest([version, _evaluation_versions(task)])


def _evaluation_versions(task: Task) -> dict[str, int | str]:
    """Return the versions of the code that evaluates; that of lm-eval's tasks scores as well."""
    if task.lm_eval:
        return {**versions_of("tokenization", "lm_eval")}
    shots = {"few_shot": plugins.version("prompting", "few_shot")} if task.num_fewshot else {}
    return {**versions_of("tokenization", "evaluation"), **shots}


def _scoring_digest(m: Measured) -> str:
    """Digest what turns answers into scores: what the task says of it, and the code; no paths."""
    if m.task.lm_eval:
        return ""
    said = m.task.model_dump(include=set(SCORING), exclude_defaults=True)
    said |= {"metrics": list(map(metric_name, m.task.metrics)), "primary": metric_name(m.task.primary)}
    code = [versions_of("scoring"), *map(metrics.version, m.task.metrics)]
    return digest([said, m.role == "safety", code])
