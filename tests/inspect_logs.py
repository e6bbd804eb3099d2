"""Logs as inspect writes them, as JSON or zipped; and the script that made the real ones in `fixtures/inspect`.

Invariant: the fields and names are those of inspect_ai 0.3's log format, version 2; texts are ours.

The real logs were written once by inspect itself, with its mock model, in an environment of their own:

    pip install inspect-ai && python tests/inspect_logs.py tests/fixtures/inspect
"""

import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REAL = Path(__file__).parent / "fixtures" / "inspect"
TEMPLATE = "{question}\n{choices}\nWrite ANSWER: and one of {letters}."
CREATED = "2026-03-04T10:11:12+00:00"


def write(folder: Path, scores: Mapping[str, Sequence[Any]], *, zipped: bool = True, **changes: Any) -> Path:
    """Write one model's folder, a log a task, from each task's scores; returns it."""
    # `changes` replace fields of the header's `eval`; `status`, `samples` and `invalidated` those of the log.
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
    """Make the log of one evaluation; a value is what its scorer gave, a list of them one an epoch."""
    of_log = {key: changes.pop(key) for key in ("status", "samples", "invalidated") if key in changes}
    epochs = max(len(value) if isinstance(value, list) else 1 for value in values)
    samples = [
        sample(task, index, epoch, score)
        for index, value in enumerate(values)
        for epoch, score in enumerate(value if isinstance(value, list) else [value], 1)
    ]
    spec = {
        "created": CREATED,
        "task": task,
        "task_version": 0,
        "task_args": {},
        "task_args_passed": {},
        "model": "mockllm/model",
        "model_generate_config": {"max_tokens": 64},
        "model_args": {},
        "config": {"epochs": epochs},
        "scorers": [{"name": "match", "options": {"numeric": True}}],
    }
    return {
        "version": 2,
        "status": "success",
        "eval": {**spec, **changes},
        "plan": {"steps": [{"solver": "generate", "params": {}}], "config": {}},
        "results": {"total_samples": len(samples), "scores": [{"name": "match", "scorer": "match"}]},
        "samples": samples,
        **of_log,
    }


def sample(task: str, index: int, epoch: int, score: Any) -> dict[str, Any]:
    question = f"{task} question {index}?"
    return {
        "id": f"{task}-{index}",
        "epoch": epoch,
        "input": question,
        "target": "yes",
        "messages": [
            {"id": f"{id(question)}", "role": "user", "content": question, "source": "input"},
            {"id": f"{id(score)}", "role": "assistant", "content": "perhaps", "source": "generate"},
        ],
        "output": {"choices": [{"message": {"content": "perhaps"}, "stop_reason": "stop"}]},
        "scores": {"match": {"value": score, "answer": "perhaps"}},
        "metadata": {},
    }


def zip_log(path: Path, log: Mapping[str, Any], method: int = zipfile.ZIP_DEFLATED) -> None:
    """Write a log in its zipped form: the header, the beginning, and each sample in a file of its own."""
    header = {key: value for key, value in log.items() if key != "samples"}
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(
            "_journal/start.json", json.dumps({"version": 2, "eval": log["eval"], "plan": log["plan"]})
        )
        for one in log["samples"]:
            archive.writestr(f"samples/{one['id']}_epoch_{one['epoch']}.json", json.dumps(one))
        archive.writestr("header.json", json.dumps(header))


def make_real(folder: Path) -> None:
    """Let inspect's mock model answer twelve questions twice: as a base, and with three answers lost."""
    import inspect_ai
    from inspect_ai.dataset import Sample
    from inspect_ai.log import read_eval_log, write_eval_log
    from inspect_ai.model import ModelOutput, ModelUsage, get_model
    from inspect_ai.scorer import choice
    from inspect_ai.solver import multiple_choice

    @inspect_ai.task
    def letters() -> Any:
        samples = [
            Sample(
                input=f"Which letter stands at place {i}?", choices=list("abcd"), target="ABCD"[i % 4], id=i
            )
            for i in range(12)
        ]
        return inspect_ai.Task(dataset=samples, solver=multiple_choice(template=TEMPLATE), scorer=choice())

    def script_answers(wrong: set[int]) -> Any:
        letter = iter(
            "A" if i in wrong and i % 4 else "B" if i in wrong else "ABCD"[i % 4] for i in range(12)
        )

        def answer(*_: Any, **__: Any) -> Any:
            output = ModelOutput.from_content("mockllm/model", f"ANSWER: {next(letter)}")
            output.usage = ModelUsage(input_tokens=9, output_tokens=3, total_tokens=12)
            return output

        return get_model("mockllm/model", custom_outputs=answer)

    for arm, wrong in (("base", {5}), ("tuned", {3, 5, 6, 8})):
        options = {"display": "none", "log_format": "eval", "max_samples": 1, "log_model_api": False}
        (log,) = inspect_ai.eval(letters(), model=script_answers(wrong), log_dir=str(folder / arm), **options)
        kept = read_eval_log(log.location)
        kept.eval.task_file, kept.eval.revision = "inspect_logs.py", None
        for one in kept.samples or []:
            one.events, one.attachments = [], {}  # some 5 kB a sample that nobody reads here
            one.events_data = None
        Path(log.location).unlink()
        write_eval_log(kept, str(folder / arm / "letters.eval"))
    write_eval_log(kept, str(folder / "tuned.json"))


if __name__ == "__main__":
    make_real(Path(sys.argv[1]))
