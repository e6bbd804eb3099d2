"""Folders as lm-eval writes them with `--log_samples`: one file of samples per task, and the results.

Invariant: fields and names are those of lm-eval 0.4's `evaluation_tracker`; texts are ours.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

DATE = "2026-03-04T10-11-12.123456"


def write(
    folder: Path,
    scores: Mapping[str, Sequence[float]],
    *,
    n_choices: int = 4,
    date: str = DATE,
    model: str = "",
    **config: Any,
) -> Path:
    """Write one model's folder from each task's scores; return it. Its name shifts the likelihoods."""
    inner = folder / (model.replace("/", "__") or "someone__model")
    inner.mkdir(parents=True, exist_ok=True)
    for task, values in scores.items():
        lines = [json.dumps(sample(task, i, value, n_choices, folder.name)) for i, value in enumerate(values)]
        (inner / f"samples_{task}_{date}.jsonl").write_text("\n".join(lines) + "\n")
    results = {
        "results": {}, "higher_is_better": {task: {"acc": True, "acc_norm": True} for task in scores},
        "versions": dict.fromkeys(scores, 1.0), "n-shot": dict.fromkeys(scores, 0),
        "config": {"model": "hf", "model_dtype": "torch.bfloat16", "batch_size": 8, **config},
        "chat_template_sha": None,
    }  # fmt: skip
    if model:
        results["model_name"] = model
        results["config"].setdefault("model_args", f"pretrained={model}")
    (inner / f"results_{date}.json").write_text(json.dumps(results))
    return folder


def sample(task: str, index: int, score: float, n_choices: int, arm: str) -> dict[str, Any]:
    doc = {"question": f"{task} question {index}?", "choices": list("abcdefgh"[:n_choices])}
    resps = [[[f"-{10 + k}.{crc32(arm.encode())}", "False"]] for k in range(n_choices)]
    return {
        "doc_id": index, "doc": doc, "target": "0",
        "arguments": [[doc["question"], choice] for choice in doc["choices"]],
        "resps": resps, "filtered_resps": [r[0] for r in resps], "filter": "none",
        "metrics": ["acc", "acc_norm"], "acc": score, "acc_norm": score,
        "doc_hash": sha(json.dumps(doc)), "prompt_hash": sha(doc["question"]), "target_hash": sha("0"),
    }  # fmt: skip


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
