"""Metrics of the evaluate library, by name on the hub or path of a script.

Invariant: every answer is scored alone and the aggregate is the weighted mean, because corpus scores can be
neither paired nor weighted; with several references the nearest counts.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.metrics import Metric, mean_metric
from harness.progress import quiet_libraries
from harness.records import Example, Output, list_words
from harness.spec import EVALUATE, Task, is_path, metric_name

# The library does not give the direction of metrics; these count errors.
_ERRORS = {"cer", "character", "mae", "mape", "mase", "mse", "perplexity", "smape", "ter", "wer"}
_SAMPLE = "a b c d"
_GIVEN = {"bertscore": {"lang": "en"}}  # selects its model

Compute = Callable[[str, tuple[str, ...]], dict[str, Any]]


def metric(task: Task, written: str) -> Metric:
    """Build the mean of a metric over single answers, in the metric's unit."""
    path, _, key = written.removeprefix(EVALUATE).partition(":")
    where, name = f"task {task.name}: metric {metric_name(written)}", Path(path).name.removesuffix(".py")
    quiet_libraries()
    try:
        import evaluate
    except ImportError:
        step = "pip install 'harness-evals[evaluate]'"
        raise UserError(where, "no package evaluate", "its library", step) from None
    try:
        scorer: Any = evaluate.load(path, keep_in_memory=True)
    except Exception as error:  # noqa: BLE001 (a script fails to load in as many ways as code can)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        expected = "a metric script" if is_path(path) else "a metric that the hub gives or that is cached"
        step = "check the name or path and the network, and install what it needs"
        raise UserError(where, f"it could not be loaded ({reason})", expected, step) from None
    is_error = name in _ERRORS
    kinds = scorer.features if isinstance(scorer.features, list) else [scorer.features]
    texts = [kind for kind in kinds if _is_text(kind.get("predictions")) and _is_text(kind.get("references"))]
    if not texts:
        found = "a metric that does not compare an answer with references as texts"
        step = "use one of harness ls metrics"
        raise UserError(where, found, "predictions and references as texts", step)
    takes_all = any(hasattr(kind["references"], "feature") for kind in texts)

    def compute(text: str, references: tuple[str, ...]) -> dict[str, Any]:
        reference_lists = [list(references)] if takes_all else [references[0]]
        return dict(scorer.compute(predictions=[text], references=reference_lists, **_GIVEN.get(name, {})))

    key = _key(compute, key, name, where)

    def score(output: Output, example: Example) -> float:
        references = example.references
        ref_sets = [references] if takes_all else [(reference,) for reference in references]
        scores = [_number(compute(output.text, refs)[key], where) for refs in ref_sets]
        return min(scores) if is_error else max(scores)

    bounds = (0.0, inf) if is_error else (-inf, inf)
    built = mean_metric(metric_name(written), score, not is_error, bounds)
    worst = (1.0 if is_error else 0.0,)
    signature = f"mean of single answers|key:{key}|evaluate:{version('evaluate')}"

    def is_ascii(example: Example) -> bool:  # the library's ROUGE keeps only unaccented Latin letters
        return all(sign.isascii() for text in example.references for sign in list_words(text))

    reads = is_ascii if name == "rouge" else built.reads
    return replace(built, worst=lambda _: worst, signature=signature, reads=reads)


def _key(compute: Compute, key: str, name: str, where: str) -> str:
    try:
        sample_result = compute(_SAMPLE, (_SAMPLE,))
    except Exception as error:  # noqa: BLE001 (a metric fails in its own way when it needs more than texts)
        reason = f"it could not score an answer ({type(error).__name__}: {str(error).splitlines()[0]})"
        next_step = "write a metric of your own around it: metrics: [./mine.py]"
        raise UserError(where, reason, "a metric that needs nothing but texts", next_step) from None
    numbers = [k for k, value in sample_result.items() if _is_number(value)]
    chosen_key = key or (name if name in numbers else numbers[0] if len(numbers) == 1 else "")
    if chosen_key not in numbers:
        listed = ", ".join(numbers) or "no number at all"
        next_step = f"name one of them: {EVALUATE}{name}:{numbers[0]}" if numbers else ""
        raise UserError(where, f"a metric that gives {listed}", "one number", next_step)
    return chosen_key


def _is_text(feature: Any) -> bool:
    return getattr(getattr(feature, "feature", feature), "dtype", None) in ("string", "large_string")


def _is_number(value: Any) -> bool:
    item = value[0] if isinstance(value, list) and len(value) == 1 else value
    try:
        return item is not None and not isinstance(item, str | dict | list) and float(item) == float(item)
    except (TypeError, ValueError):
        return False


def _number(value: Any, where: str) -> float:
    if not _is_number(value):
        raise UserError(where, f"{value!r}", "a number for every answer", "leave the metric out")
    return float(value[0] if isinstance(value, list) else value)
