"""A server that speaks OpenAI's protocol over real HTTP, answered by a model in memory or by a rule.

Invariant: what it says follows from the request and from what answers alone; `faults` are said first.
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
    """One answer, with what it cost in tokens."""

    text: str
    finish_reason: str = "stop"
    n_prompt: int | None = 10  # None of a server that sends no usage
    n_new: int = 1
    tokens: tuple[dict[str, float], ...] = ()  # log-probabilities of what each could have been, its own first


class Fault(NamedTuple):
    """What is answered instead: a status, the body, and after how long."""

    status: int = 500
    body: Any = None
    after_s: float = 0.0


class Rule:
    """Answers messages by a function; knows no tokens."""

    def __init__(self, answer: Callable[[list[dict]], str]) -> None:
        self._answer = answer

    def chat(self, messages: list[dict], body: dict) -> ServerAnswer:
        return ServerAnswer(self._answer(messages))


class Model:
    """A causal language model as transformers runs it, one request at a time."""

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
            made = self._model.generate(
                self._torch.tensor([ids]), max_new_tokens=body["max_tokens"], do_sample=False
            )
        new = made[0, len(ids) :].tolist()
        text = self._tokenizer.decode(new, skip_special_tokens=True)
        ended = new[-1] == self._tokenizer.eos_token_id
        cuts = [text.index(s) for s in body.get("stop", ()) if s in text]
        text = text[: min(cuts)] if cuts else text
        return ServerAnswer(text, "stop" if ended or cuts else "length", len(ids), len(new))

    def logprobs(self, ids: list[int]) -> dict:
        with self._lock, self._torch.no_grad():
            said = self._model(self._torch.tensor([ids])).logits[0].log_softmax(-1)
        own = [said[i, token].item() for i, token in enumerate(ids[1:])]
        best = [row.max(-1) for row in said]
        tops = [{str(b.indices.item()): b.values.item()} for b in best]
        return {
            "tokens": [str(i) for i in ids] + ["new"],
            "token_logprobs": [None, *own, best[-1].values.item()],
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
        self.page: bytes | None = None  # what GET answers instead of a list of models
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
        """Answer one connection's requests; a client that is gone is no error.

        A traceback printed in this thread would call `ast.parse`, which on Python 3.11.7 is not safe beside a call in
        another one (python/cpython#106905).
        """
        self._connections.add(request)
        with suppress(ConnectionError):
            super().finish_request(request, client_address)
        self._connections.discard(request)

    def server_close(self) -> None:
        """Close the connections that clients keep open too, and wait for their threads."""
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
            said = self.model.chat(body["messages"], body)
            known = _token_logprobs(said, body["top_logprobs"]) if body.get("logprobs") else None
            message = {"role": "assistant", "content": said.text}
            return 200, _response(said, {"message": message, "logprobs": known})
        if not hasattr(self.model, "complete"):
            return 404, _error("Not Found")
        room = self.model.max_model_len - body["max_tokens"]
        if len(body["prompt"]) > room:
            return 400, _error(f"This model's maximum context length is {self.model.max_model_len} tokens.")
        if body.get("echo"):
            said, known = ServerAnswer("", "length"), self.model.logprobs(body["prompt"])
        else:
            said, known = self.model.complete(body["prompt"], body), None
        return 200, _response(said, {"text": said.text, "logprobs": known})


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together: apart, each answer would wait for an acknowledgement

    def do_GET(self) -> None:
        if self.server.page is not None:
            self._write(200, "text/html", self.server.page)
            return
        size = getattr(self.server.model, "max_model_len", None)
        one = {"object": "model", "created": 0, "owned_by": "us", "max_model_len": size}
        self._send(200, {"object": "list", "data": [{"id": name, **one} for name in self.server.listed]})

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
        """Say nothing."""


def _token_logprobs(said: ServerAnswer, n: int) -> dict | None:
    """Return the log-probabilities of tokens as a chat has them; nothing where the model gives none."""
    content = [
        {"token": next(iter(of)), "logprob": next(iter(of.values())), "top_logprobs": [
            {"token": token, "logprob": value, "bytes": None} for token, value in [*of.items()][:n]
        ]}
        for of in said.tokens
    ]  # fmt: skip
    return {"content": content} if content else None


def _error(message: str) -> dict:
    return {"error": {"message": message, "type": "invalid_request_error", "code": None}}


def _response(said: ServerAnswer, choice: dict) -> dict:
    usage = {"prompt_tokens": said.n_prompt, "completion_tokens": said.n_new}
    total = said.n_new + (said.n_prompt or 0)
    counted = {} if said.n_prompt is None else {"usage": {**usage, "total_tokens": total}}
    return {
        "id": "1",
        "object": "text_completion",
        "created": 0,
        "model": NAME,
        "choices": [{"index": 0, "finish_reason": said.finish_reason, **choice}],
        **counted,
    }


@contextmanager
def serve_model(model: Any, **given: Any) -> Iterator[Server]:
    server = Server(model, **given)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
