"""Rows as lm-eval logs its samples, so that what reads those reads ours.

Invariant: document, prompts, target and their hashes are lm-eval's own. Of the answers there is what
our row holds, whose keys stand beside lm-eval's; `resps` are left out.

Source: lm_eval/evaluator.py and lm_eval/loggers/evaluation_tracker.py, version 0.4.13.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from harness.evaluation.lm_eval.metrics import Score
from harness.metrics import Parts
from harness.records import SampleResult


def logged(
    row: SampleResult, doc_id: int, target: Any, instances: Sequence[Any], scores: Sequence[Score]
) -> Iterator[dict[str, Any]]:
    """Yield one sample of a row for each filter, as plain types; `instances` are the document's requests."""
    from lm_eval.utils import handle_non_serializable, hash_string

    def plain(value: Any) -> Any:
        return json.loads(json.dumps(value, default=handle_non_serializable))

    first = instances[0]
    document = json.dumps(first.doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    for name in dict.fromkeys(score.filter for score in scores):
        values = {s.metric: _value(row.parts[s.name]) for s in scores if s.filter == name}
        yield {
            **asdict(row),
            "doc_id": doc_id,
            "doc": plain(first.doc),
            "target": plain(target),
            "arguments": {f"gen_args_{i}": _arguments(plain(x.args)) for i, x in enumerate(instances)},
            "filter": name,
            "metrics": list(values),
            "doc_hash": hash_string(document),
            "prompt_hash": hash_string(first.arguments[0]),
            "target_hash": hash_string(str(target)),
            **values,
        }


def _arguments(args: Sequence[Any]) -> dict[str, Any]:
    return {f"arg_{i}": arg for i, arg in enumerate(args)}


def _value(parts: Parts | None) -> float | Sequence[float] | None:
    """Write a score of one number as that number."""
    return parts[0] if parts is not None and len(parts) == 1 else parts
