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
from harness.records import SampleResult


def sample_records(
    row: SampleResult, doc_id: int, target: Any, instances: Sequence[Any], scores: Sequence[Score]
) -> Iterator[dict[str, Any]]:
    """Yield one sample of a row for each filter, as plain types; `instances` are the document's requests."""
    from lm_eval.utils import handle_non_serializable, hash_string

    def plain(value: Any) -> Any:
        return json.loads(json.dumps(value, default=handle_non_serializable))

    first = instances[0]
    document = json.dumps(first.doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    for name in dict.fromkeys(score.filter for score in scores):
        parts = {s.metric: row.parts[s.name] for s in scores if s.filter == name}
        values = {metric: p[0] if p is not None and len(p) == 1 else p for metric, p in parts.items()}
        arguments = {f"gen_args_{i}": plain(instance.args) for i, instance in enumerate(instances)}
        yield {
            **asdict(row),
            "doc_id": doc_id,
            "doc": plain(first.doc),
            "target": plain(target),
            "arguments": {k: {f"arg_{i}": a for i, a in enumerate(args)} for k, args in arguments.items()},
            "filter": name,
            "metrics": list(values),
            "doc_hash": hash_string(document),
            "prompt_hash": hash_string(first.arguments[0]),
            "target_hash": hash_string(str(target)),
            **values,
        }
