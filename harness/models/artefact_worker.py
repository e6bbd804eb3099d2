"""Worker that runs a GGUF or ONNX file: `python artefact_worker.py FILE`, with requests on standard input.

Standard input is a socket. Requests and answers are one line of JSON each, `{"do": NAME, …}`; logits follow
their line as 32-bit floats. With `--describe gguf` or `--describe onnx` it prints the engine and exits.

Invariant: it runs in the Python of another environment, so it imports only the standard library, numpy, and
llama_cpp or onnxruntime. Each request begins with an empty cache; within a request, shared prefixes are read
once. Source: llama.cpp's include/llama.h; onnxruntime's InferenceSession
"""

import ctypes
import hashlib
import json
import os
import re
import resource
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_CHUNK = 128  # tokens read together, and rows of logits held in memory
_ASK_EVERY = 8  # tokens between questions to the client whether a stop string has appeared
_FEWEST = 1024  # tokens of the smallest cache
_MAXRSS_BYTES = 1024


class Gguf:
    """A GGUF file, run by llama.cpp."""

    def __init__(self, path: str) -> None:
        import llama_cpp

        self._llama: Any = llama_cpp
        self._context: Any = None
        self._room = self._length = 0
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise ValueError("llama.cpp cannot load this file")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocabulary = int(llama_cpp.llama_vocab_n_tokens(self._vocab))
        self.context = int(llama_cpp.llama_model_n_ctx_train(self._model))
        self._batch = llama_cpp.llama_batch_init(_CHUNK, 0, 1)

    def begin(self, longest: int) -> None:
        """Create an empty cache whose size is the smallest power of two that holds the longest text."""
        llama = self._llama
        room = max(_FEWEST, 1 << (longest - 1).bit_length())
        if room != self._room:
            if self._context:
                llama.llama_free(self._context)
            params = llama.llama_context_default_params()
            params.n_ctx, params.n_batch, params.n_ubatch = room, _CHUNK, _CHUNK
            params.n_threads = params.n_threads_batch = _threads()
            self._context, self._room = llama.llama_init_from_model(self._model, params), room
            if not self._context:
                raise MemoryError(f"llama.cpp has no room for a context of {room} tokens")
        self._memory = llama.llama_get_memory(self._context)
        llama.llama_memory_clear(self._memory, True)
        self._length = 0

    def cut(self, length: int) -> None:
        """Truncate the cache to its first tokens."""
        if not self._llama.llama_memory_seq_rm(self._memory, 0, length, -1):
            self._llama.llama_memory_clear(self._memory, True)
            raise NotImplementedError("a model whose cache cannot be cut, such as a recurrent one")
        self._length = length

    def read(self, ids: Sequence[int], n_logits: int) -> np.ndarray:
        """Read tokens after the cached ones, and return the logits (n_logits, v) after the last of them."""
        batch, first = self._batch, len(ids) - n_logits
        batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            batch.token[index], batch.pos[index] = token, self._length + index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = index >= first
        if code := self._llama.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode gave {code}")
        self._length += len(ids)
        rows = [
            np.ctypeslib.as_array(self._llama.llama_get_logits_ith(self._context, i), (self.vocabulary,))
            for i in range(first, len(ids))
        ]
        return np.array(rows, np.float32).reshape(n_logits, self.vocabulary)

    def metadata(self, name: str) -> str:
        """Return a text from the file's metadata; empty if it is missing."""
        room = ctypes.create_string_buffer(1)
        size = self._llama.llama_model_meta_val_str(self._model, name.encode(), room, 1)
        if size < 0:
            return ""
        room = ctypes.create_string_buffer(size + 1)
        self._llama.llama_model_meta_val_str(self._model, name.encode(), room, size + 1)
        return room.value.decode("utf-8", "replace")

    def tokenize(self, text: str) -> list[int]:
        """Turn a rendered prompt into token ids, as llama.cpp's server does."""
        raw = text.encode()
        buffer = (self._llama.llama_token * (len(raw) + 8))()
        size = self._llama.llama_tokenize(self._vocab, raw, len(raw), buffer, len(buffer), True, True)
        return list(buffer[:size])


class Onnx:
    """A decoder in ONNX, run by onnxruntime: takes ids, positions and a cache, gives logits and a cache."""

    def __init__(self, path: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = _threads()
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = {node.name: node for node in self._session.get_inputs()}
        if "input_ids" not in names:
            raise ValueError(f"an ONNX file without the input input_ids; it has {', '.join(names)}")
        self._names = names
        self._cache = [name for name in names if "past" in name]
        outputs = [node.name for node in self._session.get_outputs()]
        self._outputs = ["logits", *(name for name in outputs if name != "logits")]
        parts = [
            [re.sub(r"^(input|output)\.|past_key_values|present", "", name) for name in names]
            for names in (self._cache, self._outputs[1:])
        ]
        if parts[0] != parts[1]:
            raise ValueError("an ONNX file whose cache comes in and goes out in different parts")
        self._past: list[np.ndarray] = []
        self.begin(0)
        self.vocabulary = int(self.read([0], 1).shape[-1])
        self.context = 1 << 30

    def begin(self, longest: int) -> None:
        """Empty the cache."""
        self._past, self._length = [], 0
        for name in self._cache:
            batch, heads, _, size = self._names[name].shape
            kind = np.float16 if "float16" in self._names[name].type else np.float32
            empty = (batch if isinstance(batch, int) else 1, int(heads), 0, int(size))
            self._past.append(np.zeros(empty, kind))

    def cut(self, length: int) -> None:
        """Truncate the cache to its first tokens."""
        self._past = [tensor[:, :, :length] for tensor in self._past]
        self._length = length

    def read(self, ids: Sequence[int], n_logits: int) -> np.ndarray:
        """Read tokens after the cached ones, and return the logits (n_logits, v) after the last of them."""
        positions = np.arange(self._length, self._length + len(ids), dtype=np.int64)[None]
        feeds = {"input_ids": np.array([ids], np.int64), **dict(zip(self._cache, self._past, strict=True))}
        if "position_ids" in self._names:
            feeds["position_ids"] = positions
        if "attention_mask" in self._names:
            feeds["attention_mask"] = np.ones((1, self._length + len(ids)), np.int64)
        logits, *self._past = self._session.run(self._outputs, feeds)
        self._length += len(ids)
        rows: np.ndarray = logits[0, len(ids) - n_logits :].astype(np.float32)
        return rows


Engine = Gguf | Onnx


class Reader:
    """Reader of one text after another; a prefix shared with the text before is read only once."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._known = engine, list[int]()

    def begin(self, longest: int) -> None:
        """Begin a request whose texts have at most `longest` tokens."""
        self._engine.begin(longest)
        self._known = []

    def logits(self, ids: Sequence[int], first: int) -> Iterator[np.ndarray]:
        """Yield the logits (k, v) after each token of a text from `first` on, in chunks."""
        limit = min(len(self._known), first)
        shared = next((i for i in range(limit) if self._known[i] != ids[i]), limit)
        if shared < len(self._known):
            self._engine.cut(shared)
        self._known = self._known[:shared]
        for start in range(shared, len(ids), _CHUNK):
            chunk = ids[start : start + _CHUNK]
            rows = self._engine.read(chunk, min(len(chunk), max(0, start + len(chunk) - first)))
            self._known += chunk
            if len(rows):
                yield rows

    def generate(
        self, prompt: Sequence[int], seed: int | None, request: dict[str, Any], asks: Any
    ) -> list[int]:
        """Continue a prompt by the likeliest tokens, or top-p draws, until an end or until `asks` says so."""
        ids, new, generator = list(prompt), list[int](), np.random.default_rng(seed)

        def pick(row: np.ndarray) -> int:
            if seed is None:
                return int(row.argmax())
            exact = row.astype(np.float64) / request["temperature"]
            p = np.exp(exact - exact.max())
            order = np.argsort(-p, kind="stable")
            before = np.cumsum(p[order]) - p[order]
            nucleus = order[before < request["top_p"] * p.sum()]
            return int(nucleus[np.searchsorted(np.cumsum(p[nucleus]), generator.random() * p[nucleus].sum())])

        while len(new) < request["max_new_tokens"] and not (new and new[-1] in request["ends"]):
            if request["asks"] and new and len(new) % _ASK_EVERY == 0 and asks(new):
                break
            (row,) = (rows[-1] for rows in self.logits(ids, len(ids) - 1))
            new.append(pick(row))
            ids.append(new[-1])
        return new


def _score(reader: Reader, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """Return the log-probability of a continuation in nats, and whether greedy decoding gives it."""
    target_ids, total, greedy, offset = np.array(continuation), 0.0, True, 0
    if not continuation:
        return 0.0, True
    for rows in reader.logits([*context, *continuation][:-1], len(context) - 1):
        exact = rows.astype(np.float64)
        chosen = exact[np.arange(len(rows)), target_ids[offset : offset + len(rows)]]
        largest = exact.max(-1)
        total += float((chosen - largest - np.log(np.exp(exact - largest[:, None]).sum(-1))).sum())
        greedy &= bool((exact.argmax(-1) == target_ids[offset : offset + len(rows)]).all())
        offset += len(rows)
    return total, greedy


def _threads() -> int:
    setting = os.environ.get("OMP_NUM_THREADS", "")
    return int(setting) if setting.isdecimal() else len(os.sched_getaffinity(0))


def _describe(kind: str) -> dict[str, Any]:
    """Describe the engine of a file format: name, version, build of its kernels, system."""
    build: Any
    if kind == "gguf":
        import llama_cpp

        libraries = sorted((Path(llama_cpp.__file__).parent / "lib").glob("*.so"))
        build = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in libraries}
        info = "llama.cpp", llama_cpp.__version__, build, llama_cpp.llama_print_system_info().decode().strip()
    else:
        import onnxruntime

        build = onnxruntime.get_build_info()
        info = "onnxruntime", onnxruntime.__version__, build, "CPUExecutionProvider"
    return dict(zip(("engine", "version", "build", "system"), info, strict=True))


def _answer(engine: Engine, request: dict[str, Any], send: Any, read: Any) -> None:
    """Answer a request with one line per text, each sent as soon as it is ready."""

    def asks(new: list[int]) -> bool:
        send({"ids": new, "asks": True})
        return bool(read()["stop"])

    reader, do = Reader(engine), request["do"]
    if do == "describe":
        metadata = {n: engine.metadata(n) for n in request["metadata"]} if isinstance(engine, Gguf) else {}
        send({"vocabulary": engine.vocabulary, "context": engine.context, "metadata": metadata})
    elif do == "tokenize":
        assert isinstance(engine, Gguf)
        for text in request["texts"]:
            send({"ids": engine.tokenize(text)})
    elif do == "generate":
        seeds = request["seeds"] or [None] * len(request["prompts"])
        reader.begin(max(map(len, request["prompts"])) + request["max_new_tokens"])
        for prompt, seed in zip(request["prompts"], seeds, strict=True):
            send({"ids": reader.generate(prompt, seed, request, asks)})
    elif do == "score":
        reader.begin(max(len(context) + len(continuation) for context, continuation in request["pairs"]))
        for context, continuation in request["pairs"]:
            send({"score": _score(reader, context, continuation)})
    elif do == "logits":
        reader.begin(max(map(len, request["texts"])))
        for ids in request["texts"]:
            rows = np.concatenate(list(reader.logits(ids, len(ids) - request["last"])))
            send({"shape": rows.shape}, np.ascontiguousarray(rows, np.float32).tobytes())


def main() -> None:
    """Answer requests until standard input is closed."""
    if sys.argv[1] == "--describe":
        sys.stdout.write(json.dumps(_describe(sys.argv[2])) + "\n")
        return
    try:
        engine: Engine = Gguf(sys.argv[1]) if sys.argv[1].endswith(".gguf") else Onnx(sys.argv[1])
    except Exception as error:  # noqa: BLE001 (each engine raises its own errors)
        sys.exit(f"{type(error).__name__}: {error}")
    with socket.socket(fileno=os.dup(0)) as channel, channel.makefile("rwb") as stream:

        def send(message: dict[str, Any], raw: bytes = b"") -> None:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES
            stream.write(json.dumps(message | {"peak_bytes": peak}).encode() + b"\n" + raw)
            stream.flush()

        while line := stream.readline():
            _answer(engine, json.loads(line), send, lambda: json.loads(stream.readline()))


if __name__ == "__main__":
    main()
