"""A stand-in for the program `vllm`: `--version`, and `serve` with OpenAI's protocol and LoRA.

Invariant: it takes the arguments that vLLM's documentation names and refuses others. `FAKE_VLLM` selects a
fault: `no-memory`, `mute`, `dies-after-N` or `refuses-after-N` requests. `FAKE_VLLM_MODEL=none` answers
without a model, and starts at once. `FAKE_VLLM_TAKES` names a file: if it does not exist, another program
takes the port first, once. `install` writes the program to a folder, as pip writes vLLM's.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

VERSION = "9.9.9"


def install(folder: Path, version: str = VERSION) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "vllm"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]}\n"
        f"import fake_vllm\nfake_vllm.main({version!r})\n"
    )
    program.chmod(0o755)
    return program


def main(version: str) -> None:
    parser = argparse.ArgumentParser(prog="vllm", allow_abbrev=False)
    parser.add_argument("-v", "--version", action="version", version=version)
    serve = parser.add_subparsers(required=True).add_parser("serve", allow_abbrev=False)
    serve.add_argument("model")
    words = (
        "--served-model-name --host --dtype --generation-config --override-generation-config --kv-cache-dtype"
    )
    for name in words.split():
        serve.add_argument(name)
    for name in ("--port", "--max-model-len", "--tensor-parallel-size", "--max-lora-rank", "--max-loras"):
        serve.add_argument(name, type=int)
    serve.add_argument("--gpu-memory-utilization", type=float)
    serve.add_argument("--enable-lora", action="store_true")
    options = parser.parse_args()
    sys.stdout.write(f"INFO vLLM API server version {version}\nINFO arguments {sys.argv[1:]}\n")
    sys.stdout.flush()
    fault = os.environ.get("FAKE_VLLM", "")
    if fault == "no-memory":
        sys.exit("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")
    if fault == "mute":
        time.sleep(600)
    if (taken_file := os.environ.get("FAKE_VLLM_TAKES")) and not Path(taken_file).exists():
        Path(taken_file).touch()
        with socket.create_server(("127.0.0.1", options.port)):
            serve_model(options, fault)
    serve_model(options, fault)


def fail(fault: str) -> tuple[int, object]:
    if fault.startswith("refuses"):
        return 404, {"error": {"message": "refused"}}
    sys.stdout.write("RuntimeError: the engine core died\n")
    sys.stdout.flush()
    os._exit(7)


def serve_model(options: argparse.Namespace, fault: str) -> None:
    """Answer requests with a model in memory until a signal arrives."""
    import openai_server

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # like vLLM's engine

    class AdapterServer(openai_server.Server):
        """A server that can load adapters, each under a name."""

        n_left = int(fault.rpartition("-")[2]) if "-after-" in fault else -1

        def answer(self, path: str, body: dict) -> tuple[int, object]:
            if path.endswith("_lora_adapter"):
                return self.adapt(path, body)
            if self.n_left == 0:
                return fail(fault)
            self.n_left -= 1
            names = {options.served_model_name, *self.model.adapters}
            if body["model"] not in names:
                return 404, openai_server._error(f"The model `{body['model']}` does not exist.")
            self.model.use(body["model"])
            return super().answer(path, body | {"model": openai_server.NAME})

        def adapt(self, path: str, body: dict) -> tuple[int, object]:
            if not options.enable_lora or os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") != "True":
                return 404, {"detail": "Not Found"}
            if path == "/v1/unload_lora_adapter":
                self.model.unload(body["lora_name"])
            elif body["lora_name"] in self.model.adapters:
                return 400, openai_server._error("has already been loaded")
            elif not (Path(body["lora_path"]) / "adapter_config.json").exists():
                return 404, openai_server._error("No adapter found")
            else:
                self.model.load(body["lora_name"], body["lora_path"])
            return 200, "Success"

    model = NoModel() if os.environ.get("FAKE_VLLM_MODEL") == "none" else make_adapter_model(options)
    server = AdapterServer(model, key=os.environ.get("VLLM_API_KEY"), port=options.port)
    server.listed = (options.served_model_name,)
    signal.signal(signal.SIGTERM, lambda *_: (child.terminate(), os._exit(0)))
    server.serve_forever()


class NoModel:
    """A model that answers every prompt with one word."""

    max_model_len = 300
    adapters = ()

    def use(self, name: str) -> None:
        """Ignore the adapter."""

    def complete(self, ids: list[int], body: dict) -> object:
        import openai_server

        return openai_server.ServerAnswer("late", n_prompt=len(ids))

    def chat(self, messages: list[dict], body: dict) -> object:
        import openai_server

        return openai_server.ServerAnswer("late", n_prompt=None)


def make_adapter_model(options: argparse.Namespace) -> object:
    """Return the model that the arguments name; it can load adapters."""
    import openai_server

    class AdapterModel(openai_server.Model):
        """A model with PEFT adapters, of which at most one is in use."""

        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            self.adapters: dict[str, str] = {}
            self._base = None

        def load(self, name: str, folder: str) -> None:
            from peft import PeftModel

            with self._lock:
                if self._base is None:
                    self._base = self._model
                    self._model = PeftModel.from_pretrained(self._base, folder, adapter_name=name)
                else:
                    self._model.load_adapter(folder, adapter_name=name)
                self.adapters[name] = folder

        def unload(self, name: str) -> None:
            with self._lock:
                del self.adapters[name]
                self._base, self._model = None, self._model.unload()

        def use(self, name: str) -> None:
            if name not in self.adapters and self.adapters:
                raise AssertionError("the base is asked while an adapter is loaded")

    model = AdapterModel(Path(options.model))
    model.max_model_len = options.max_model_len or model.max_model_len
    return model
