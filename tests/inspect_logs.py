"""Logs as inspect writes them, as JSON or zipped.

Invariant: fields and names are those of inspect_ai 0.3's log format, version 2; texts are ours. The real logs
in `fixtures/inspect` were written by inspect itself: its mock model answers twelve questions of four choices,
in `base` with the fifth wrong, in `tuned` with the third, sixth and eighth wrong as well.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REAL = Path(__file__).parent / "fixtures" / "inspect"
CREATED = "2026-03-04T10:11:12+00:00"


def write(folder: Path, scores: Mapping[str, Sequence[Any]], *, zipped: bool = True, **changes: Any) -> Path:
    """Write one model's folder, with a log per task, from each task's scores; return the folder."""
    # `changes` replace fields of the header's `eval`, and `status`, `samples`, `invalidated` of the log.
    folder.mkdir(parents=True, exist_ok=True)
    for task, values in scores.items():
        log = log_of(task, values, **changes)
        stem = f"{log['eval']['created'].replace(':', '-')}_{task}_{log['eval']['model'].replace('/', '-')}"
        if zipped:
            zip_log(folder / f"{stem}.eval", log)
        else:
            (folder / f"{stem}.json").write_text(json.dumps(log, indent=2))
    return folder


def log_of(task: str, values: Sequence[Any], **changes: Any) -> dict[str, Any]:
    """Make the log of one evaluation; a value is the scorer's result, or a list of one result per epoch."""
    of_log = {key: changes.pop(key) for key in ("status", "samples", "invalidated") if key in changes}
    epochs = max(len(value) if isinstance(value, list) else 1 for value in values)
    samples = [
        sample(task, index, epoch, score)
        for index, value in enumerate(values)
        for epoch, score in enumerate(value if isinstance(value, list) else [value], 1)
    ]
    spec = {
        "created": CREATED, "task": task, "task_version": 0, "task_args": {}, "task_args_passed": {},
        "model": "mockllm/model", "model_generate_config": {"max_tokens": 64}, "model_args": {},
        "config": {"epochs": epochs}, "scorers": [{"name": "match", "options": {"numeric": True}}],
    }  # fmt: skip
    return {
        "version": 2, "status": "success", "eval": {**spec, **changes},
        "plan": {"steps": [{"solver": "generate", "params": {}}], "config": {}},
        "results": {"total_samples": len(samples), "scores": [{"name": "match", "scorer": "match"}]},
        "samples": samples, **of_log,
    }  # fmt: skip


def sample(task: str, index: int, epoch: int, score: Any) -> dict[str, Any]:
    question = f"{task} question {index}?"
    messages = [
        {"id": f"{id(question)}", "role": "user", "content": question, "source": "input"},
        {"id": f"{id(score)}", "role": "assistant", "content": "perhaps", "source": "generate"},
    ]
    return {
        "id": f"{task}-{index}", "epoch": epoch, "input": question, "target": "yes", "messages": messages,
        "output": {"choices": [{"message": {"content": "perhaps"}, "stop_reason": "stop"}]},
        "scores": {"match": {"value": score, "answer": "perhaps"}}, "metadata": {},
    }  # fmt: skip


def zip_log(path: Path, log: Mapping[str, Any], method: int = zipfile.ZIP_DEFLATED) -> None:
    """Write a log in zipped form: the header, the start, and each sample in a separate file."""
    header = {key: value for key, value in log.items() if key != "samples"}
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(
            "_journal/start.json", json.dumps({"version": 2, "eval": log["eval"], "plan": log["plan"]})
        )
        for entry in log["samples"]:
            archive.writestr(f"samples/{entry['id']}_epoch_{entry['epoch']}.json", json.dumps(entry))
        archive.writestr("header.json", json.dumps(header))
