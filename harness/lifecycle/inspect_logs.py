"""Logs of inspect (`inspect_ai`): one evaluation of one task per file, as JSON or zipped `.eval`.

Invariant: logs that ended early or were declared invalid never count; checksums of zip members are verified.
Source: inspect_ai 0.3, log file format, version 2; PKWARE's application note 6.3.10, section 4.3.7 (local
headers) and 4.4.5 (method 93, which zipfile reads from Python 3.14 on).
"""

import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, BinaryIO, NamedTuple

from harness.data.text_files import refuse_bomb
from harness.errors import Problem, UserError, refuse_unreadable
from harness.lifecycle import eval_logs
from harness.lifecycle.eval_logs import Evaluation, LoggedItem, TaskLog
from harness.records import Status, canonical_json, digest, parse_json

_WORDS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
_STOPPED: dict[str, Status] = {
    "max_tokens": "truncated",
    "model_length": "truncated",
    "content_filter": "refused",
}
_DECODING = (
    *("temperature", "top_p", "top_k", "max_tokens", "stop_seqs", "seed", "num_choices", "best_of"),
    *("frequency_penalty", "presence_penalty", "logit_bias", "system_message", "effort"),
    *("reasoning_effort", "reasoning_tokens", "response_schema"),
)
_WHO = ("model", "model_args", "model_roles")
_PRECISION = ("dtype", "torch_dtype", "load_in_4bit", "load_in_8bit", "quantization")
_AGAIN = "evaluate again with inspect eval-retry"
_CONTENT = ("role", "content", "type", "text", "image", "audio", "video", "document")


class Log(NamedTuple):
    """One log: its header, and a reader of its samples, one per item and epoch."""

    path: Path
    header: Mapping[str, Any]
    samples: Callable[[], Sequence[Mapping[str, Any]]]


def find_evaluations(path: Path) -> list[Evaluation]:
    """List the logs in a file or below a folder, the newest last; each is of one task with its arguments.

    JSON files that are not logs are ignored. The score is the first rate that a log lists; epochs are
    averaged. Chance is one over the number of choices if exactly one is right.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*.eval"))
    for file in sorted(path.rglob("*.json")) if path.is_dir() else ():
        with file.open(encoding="utf-8", errors="replace") as text:
            start = text.read(400)
        if all(f'"{key}"' in start for key in ("version", "status", "eval")):  # a log begins with these keys
            files.append(file)
    logs = sorted(map(_read, files), key=lambda log: str(log.header["eval"].get("created")))
    if logs and all(_status(log.header) != "success" for log in logs):
        states = "; ".join(f"{log.path.name}: {_status(log.header)}" for log in logs)
        raise UserError(str(path), f"no finished log ({states})", "status success", _AGAIN)
    evaluations = []
    for log in logs:
        spec, finished = log.header["eval"], _status(log.header) == "success"
        with _readable(log.path):
            args = spec.get("task_args_passed", spec.get("task_args")) or {}
            # A task with other arguments has other items.
            task = " ".join([str(spec["task"]), *(f"{key}={value}" for key, value in sorted(args.items()))])
        identity = {key: spec.get(key) for key in _WHO}
        tasks = {task: partial(_score_items, task, log)} if finished else {}
        unfinished = () if finished else (task,)
        evaluations.append(Evaluation(log.path, str(spec.get("model")), identity, tasks, unfinished))
    return evaluations


def _read(file: Path) -> Log:
    """Read a log's header; a log that was cut short has only its beginning, without samples."""
    names: list[str] = []
    with _readable(file):
        is_zipped = zipfile.is_zipfile(file)
        if is_zipped:
            with file.open("rb") as raw:
                names = _open_archive(raw).namelist()
            header_name = "_journal/start.json" if "header.json" not in names else "header.json"
            (text,) = _read_members(file, lambda name: name == header_name)
            header = parse_json(text) if "header.json" in names else {"status": "started", **parse_json(text)}
        else:
            eval_logs.refuse_large(file)
            header = parse_json(file.read_text("utf-8"))
        spec = header.get("eval") if isinstance(header, dict) else None
        if not isinstance(spec, dict) or "task" not in spec:
            raise ValueError("no task in it")

    def read_samples() -> Sequence[Mapping[str, Any]]:
        entries = [] if is_zipped else header.get("samples") or []
        if "header.json" in names:
            of_zip = _read_members(file, lambda name: name.startswith("samples/") and name.endswith(".json"))
            entries = list(map(parse_json, of_zip))
        objects = [sample for sample in entries if isinstance(sample, dict)]
        if len(objects) < len(entries):
            raise ValueError("a sample that is not an object")
        return objects

    return Log(file, header, read_samples)


def _readable(file: Path) -> AbstractContextManager[None]:
    step = "copy the file again, or evaluate again"
    return refuse_unreadable(file, "a log of inspect, as .eval or .json", step)


def _status(header: Mapping[str, Any]) -> str:
    return "invalidated" if header.get("invalidated") else str(header.get("status"))


def _score_items(task: str, log: Log) -> TaskLog | Problem:
    with _readable(log.path):
        by_item: dict[str, list[Mapping[str, Any]]] = {}
        for sample in log.samples():
            by_item.setdefault(str(sample.get("id")), []).append(sample)
        if not by_item:
            step = "evaluate again without --no-log-samples"
            raise UserError(str(log.path), "no samples", "every item with its scores", step)
        repeats = []
        for name, samples in by_item.items():
            sample_epochs = {sample.get("epoch") for sample in samples}
            if sample_epochs != {None} and len(sample_epochs) < len(samples):
                repeats.append(name)
        if repeats:
            found = f"{len(repeats)} of {len(by_item)} items twice in one epoch (id {', '.join(repeats[:5])})"
            raise UserError(str(log.path), found, "every item once an epoch", _AGAIN)
        epochs = {len(samples) for samples in by_item.values()}
        if len(epochs) > 1:
            found = f"items with {min(epochs)} to {max(epochs)} epochs"
            raise UserError(str(log.path), found, "every item equally often", _AGAIN)
        n_expected = (log.header.get("results") or {}).get("total_samples")
        eval_logs.refuse_missing(log.path, sum(map(len, by_item.values())), n_expected, _AGAIN)
        item_scores = {name: [_scores(sample) for sample in samples] for name, samples in by_item.items()}
        # The first rate that the log lists decides, else the first among the samples' scores.
        listed_names = [s.get("name") for s in (log.header.get("results") or {}).get("scores") or ()]
        by_score: dict[str, list[object]] = {}
        for sampled in (sampled for epochs in item_scores.values() for sampled in epochs):
            for score, value in sampled.items():
                by_score.setdefault(score, []).append(value)
        score_names = (score for score in (*listed_names, *by_score) if score in by_score)
        metric = next((str(score) for score in score_names if eval_logs.is_rate(by_score[score])), None)
        if metric is None:
            found_none = f"no score that is a rate in [0, 1] ({', '.join(by_score) or 'none at all'})"
            step = "add a scorer, and run inspect score"
            return Problem(str(log.path), found_none, "a scorer that marks each sample", step)
        scores = {name: [sampled.get(metric) for sampled in epochs] for name, epochs in item_scores.items()}
        unscored = [name for name, values in scores.items() if None in values]
        eval_logs.refuse_unscored(log.path, metric, unscored, len(scores), _AGAIN)
        items = {n: _item(by_item[n], [x for x in values if x is not None]) for n, values in scores.items()}
        higher, joined = not eval_logs.is_lower_better(metric), eval_logs.join_copies(log.path, items)
        return TaskLog(task, metric, higher, joined, _settings(log.header), "generate", "inspect")


def _scores(sample: Mapping[str, Any]) -> dict[str, float | None]:
    """Return a sample's scores by name, as numbers or None; nested scores have their own names."""
    scores: dict[str, float | None] = {}
    for name, score in (sample.get("scores") or {}).items():
        value = score.get("value") if isinstance(score, dict) else score
        if isinstance(value, dict):
            scores |= {str(key): _number(inner) for key, inner in value.items()}
        elif not isinstance(value, list):
            scores[str(name)] = _number(value)
    return scores


def _number(value: object) -> float | None:
    if isinstance(value, str):
        value = _WORDS.get(value, _WORDS.get(value.lower(), value))
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if isfinite(number) else None


def _item(samples: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> LoggedItem:
    first = samples[0]
    choices = first.get("choices") or ()
    one_is_right = isinstance(first.get("target"), str)
    outputs = [((sample.get("output") or {}).get("choices") or [{}])[0] for sample in samples]
    stop_statuses = [_STOPPED.get(str(output.get("stop_reason", "")), "ok") for output in outputs]
    # The prompt ends before the model's first message; shots are part of the input.
    messages = first.get("messages") or ()
    turns = (i for i, m in enumerate(messages) if m.get("role") == "assistant" and m.get("source") != "input")
    prompt = list(messages[: next(turns, len(messages))])
    logged = [[sample.get(key) for key in ("uuid", "output", "scores")] for sample in samples]
    return LoggedItem(
        score=fmean(scores),
        digests={
            "doc_hash": digest([_content(first.get("input")), list(choices)]),
            "prompt_hash": digest(_content(prompt)),
            "target_hash": digest(first.get("target")),
        },
        answer=eval_logs.digest_logged(logged),
        cluster=eval_logs.find_text_cluster(first.get("metadata")),
        n_choices=len(choices) if one_is_right else 0,
        status=next((status for status in stop_statuses if status != "ok"), "ok"),
    )


def _content(value: Any) -> Any:
    """Reduce messages to their content, because their ids differ between evaluations."""
    if isinstance(value, dict):
        return {key: _content(inner) for key, inner in value.items() if key in _CONTENT}
    return [_content(inner) for inner in value] if isinstance(value, list) else value


def _settings(header: Mapping[str, Any]) -> dict[str, Any]:
    spec, plan = header["eval"], header.get("plan") or {}
    decoding = {**(spec.get("model_generate_config") or {}), **(plan.get("config") or {})}
    model_args = spec.get("model_args") or {}
    settings: dict[str, Any] = {key: decoding.get(key, "the default") for key in _DECODING}
    settings |= {key: model_args.get(key) for key in _PRECISION}
    settings["model_roles"] = canonical_json(roles) if (roles := spec.get("model_roles")) else None
    settings |= {"task_version": spec.get("task_version"), "epochs": (spec.get("config") or {}).get("epochs")}
    steps = [[s.get("solver"), s.get("params") or {}] for s in plan.get("steps") or ()]
    scorers = [[s.get("name"), s.get("options") or {}] for s in spec.get("scorers") or ()]
    settings["solvers"] = canonical_json(steps)
    settings["scorers"] = canonical_json(scorers) if scorers else None
    return settings


_ZSTANDARD = 93
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, …, lengths of the name and of the extra field


def _read_members(path: Path, is_wanted: Callable[[str], bool]) -> list[bytes]:
    contents: list[bytes] = []
    with path.open("rb") as raw:
        archive = _open_archive(raw)
        members = [info for info in archive.infolist() if is_wanted(info.filename)]
        step = "if that is meant: inspect log convert, to JSON"
        refuse_bomb(str(path), sum(info.file_size for info in members), path.stat().st_size, step)
        for info in members:
            if info.file_size > eval_logs.MOST_BYTES:
                raise zipfile.BadZipFile(f"{info.filename}: more than {eval_logs.MOST_BYTES:,} bytes")
            if info.compress_type != _ZSTANDARD:
                try:
                    contents.append(archive.read(info))
                except (NotImplementedError, RuntimeError, zlib.error) as error:
                    raise zipfile.BadZipFile(f"{info.filename}: {error}") from error
                continue
            raw.seek(info.header_offset)
            local_header = raw.read(_LOCAL_HEADER.size)
            if len(local_header) < _LOCAL_HEADER.size or not local_header.startswith(b"PK\x03\x04"):
                raise zipfile.BadZipFile(f"{info.filename}: no local header")
            _, n_name, n_extra = _LOCAL_HEADER.unpack(local_header)
            raw.seek(n_name + n_extra, 1)
            import pyarrow

            try:
                packed = raw.read(info.compress_size)
                content = pyarrow.decompress(packed, info.file_size, codec="zstd", asbytes=True)
            except (pyarrow.ArrowInvalid, OSError) as error:
                raise zipfile.BadZipFile(f"{info.filename}: {error}") from error
            if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
                raise zipfile.BadZipFile(f"{info.filename}: bad checksum")
            contents.append(content)
    return contents


def _open_archive(raw: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(raw)
    except NotImplementedError as error:  # a newer version of the format, or a damaged byte
        raise zipfile.BadZipFile(str(error)) from error
