"""A server of OpenAI's protocol over real HTTP, answered by a model in memory or by a rule.

Invariant: an answer depends only on the request and on the model or rule; `faults` are answered first.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

NAME = "tiny"


class ServerAnswer(NamedTuple):
    """One answer, with its token counts."""

    text: str
    finish_reason: str = "stop"
    n_prompt: int | None = 10  # None from a server that reports no usage
    n_new: int = 1
    tokens: tuple[dict[str, float], ...] = ()  # log-probabilities of alternatives, the chosen one first


class Fault(NamedTuple):
    """A response instead of the answer: a status, the body, and a delay."""

    status: int = 500
    body: Any = None
    after_s: float = 0.0


class Rule:
    """A rule that answers messages by a function; it has no tokens."""

    def __init__(self, answer: Callable[[list[dict]], str]) -> None:
        self._answer = answer

    def chat(self, messages: list[dict], body: dict) -> ServerAnswer:
        return ServerAnswer(self._answer(messages))


class Model:
    """A causal language model run by transformers, one request at a time."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch, self._lock = torch, threading.Lock()
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self.max_model_len = self._model.config.max_position_embeddings

    def chat(self, messages: list[dict], body: dict) -> ServerAnswer:
        ids = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return self.complete(ids["input_ids"], body)

    def complete(self, ids: list[int], body: dict) -> ServerAnswer:
        with self._lock:
            generated = self._model.generate(
                self._torch.tensor([ids]), max_new_tokens=body["max_tokens"], do_sample=False
            )
        new = generated[0, len(ids) :].tolist()
        text = self._tokenizer.decode(new, skip_special_tokens=True)
        ended = new[-1] == self._tokenizer.eos_token_id
        cuts = [text.index(s) for s in body.get("stop", ()) if s in text]
        text = text[: min(cuts)] if cuts else text
        return ServerAnswer(text, "stop" if ended or cuts else "length", len(ids), len(new))

    def logprobs(self, ids: list[int]) -> dict:
        with self._lock, self._torch.no_grad():
            all_logprobs = self._model(self._torch.tensor([ids])).logits[0].log_softmax(-1)
        token_logprobs = [all_logprobs[i, token].item() for i, token in enumerate(ids[1:])]
        best = [row.max(-1) for row in all_logprobs]
        tops = [{str(b.indices.item()): b.values.item()} for b in best]
        return {
            "tokens": [str(i) for i in ids] + ["new"],
            "token_logprobs": [None, *token_logprobs, best[-1].values.item()],
            "top_logprobs": [None, *tops],
        }


class Server(ThreadingHTTPServer):
    """One model behind an address; `model`, `faults`, `key` and `listed` may be changed while it runs."""

    daemon_threads = False  # joined by server_close

    def __init__(self, model: Any, *, key: str | None = None, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self._connections: set[socket.socket] = set()
        self.model, self.key = model, key
        self.faults: list[Fault] = []
        self.asked: list[tuple[str, dict]] = []
        self.headers: list[dict[str, str]] = []
        self.page: bytes | None = None  # response to GET instead of a list of models
        self.listed: tuple[str, ...] = (NAME,)
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @contextmanager
    def count_request(self) -> Iterator[None]:
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer one connection's requests; a disconnected client is no error.

        A traceback printed in this thread would call `ast.parse`, which on Python 3.11.7 is not safe while
        another thread calls it (python/cpython#106905).
        """
        self._connections.add(request)
        with suppress(ConnectionError):
            super().finish_request(request, client_address)
        self._connections.discard(request)

    def server_close(self) -> None:
        """Close also the connections that clients keep open, and wait for their threads."""
        for connection in [*self._connections]:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def fault(self) -> Fault | None:
        with self._lock:
            return self.faults.pop(0) if self.faults else None

    def answer(self, path: str, body: dict) -> tuple[int, Any]:
        self.asked.append((path, body))
        if body["model"] != NAME:
            return 404, _error(f"The model `{body['model']}` does not exist.")
        if path == "/v1/chat/completions":
            reply = self.model.chat(body["messages"], body)
            logprobs = _token_logprobs(reply, body["top_logprobs"]) if body.get("logprobs") else None
            message = {"role": "assistant", "content": reply.text}
            return 200, _response(reply, {"message": message, "logprobs": logprobs})
        if not hasattr(self.model, "complete"):
            return 404, _error("Not Found")
        room = self.model.max_model_len - body["max_tokens"]
        if len(body["prompt"]) > room:
            return 400, _error(f"This model's maximum context length is {self.model.max_model_len} tokens.")
        if body.get("echo"):
            reply, logprobs = ServerAnswer("", "length"), self.model.logprobs(body["prompt"])
        else:
            reply, logprobs = self.model.complete(body["prompt"], body), None
        return 200, _response(reply, {"text": reply.text, "logprobs": logprobs})


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # send head and body together: separately, each answer would wait for an acknowledgement

    def do_GET(self) -> None:
        if self.server.page is not None:
            self._write(200, "text/html", self.server.page)
            return
        size = getattr(self.server.model, "max_model_len", None)
        fields = {"object": "model", "created": 0, "owned_by": "us", "max_model_len": size}
        self._send(200, {"object": "list", "data": [{"id": name, **fields} for name in self.server.listed]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.headers.append(dict(self.headers))
        with self.server.count_request():
            fault = self.server.fault()
            if fault is not None:
                time.sleep(fault.after_s)
                self._send(fault.status, fault.body or _error("busy"))
            elif self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
                self._send(401, _error(f"Incorrect API key provided: {self.headers['Authorization']}"))
            else:
                self._send(*self.server.answer(self.path, body))

    def _send(self, status: int, value: Any) -> None:
        self._write(status, "application/json", json.dumps(value).encode())

    def _write(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Log nothing."""


def _token_logprobs(answer: ServerAnswer, n: int) -> dict | None:
    """Return the tokens' log-probabilities in the chat format; None if the model gives none."""
    content = [
        {"token": next(iter(tops)), "logprob": next(iter(tops.values())), "top_logprobs": [
            {"token": token, "logprob": value, "bytes": None} for token, value in [*tops.items()][:n]
        ]}
        for tops in answer.tokens
    ]  # fmt: skip
    return {"content": content} if content else None


def _error(message: str) -> dict:
    return {"error": {"message": message, "type": "invalid_request_error", "code": None}}


def _response(answer: ServerAnswer, choice: dict) -> dict:
    usage = {"prompt_tokens": answer.n_prompt, "completion_tokens": answer.n_new}
    total = answer.n_new + (answer.n_prompt or 0)
    counted = {} if answer.n_prompt is None else {"usage": {**usage, "total_tokens": total}}
    return {
        "id": "1",
        "object": "text_completion",
        "created": 0,
        "model": NAME,
        "choices": [{"index": 0, "finish_reason": answer.finish_reason, **choice}],
        **counted,
    }


@contextmanager
def serve_model(model: Any, **options: Any) -> Iterator[Server]:
    server = Server(model, **options)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
