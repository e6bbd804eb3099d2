"""llama.cpp's server as a program: `python -P llama_server.py FILE.gguf --port 8000 …`.

Invariant: neither the harness nor torch is loaded with llama.cpp; web pages of another origin may not read
its answers. The key comes from the environment, never from the command line.
Source: llama.cpp's tools/server and its binding xllamacpp, https://github.com/xorbitsai/xllamacpp
"""

import argparse
import os
import signal
import sys

import xllamacpp


def main() -> None:
    """Serve the file given on the command line until a signal arrives."""
    parser = argparse.ArgumentParser(prog="llama_server.py")
    parser.add_argument("file", help="the .gguf file")
    parser.add_argument("--alias", required=True, help="the model's name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-tokens", type=int, default=-1, help="of an answer, where a request names none")
    parser.add_argument("--parallel", type=int, default=1, help="requests that are answered at once")
    parser.add_argument("--api-key-env", help="the variable that holds the key")
    args = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = args.file, {args.alias}
    params.hostnames, params.port = [args.host], args.port
    params.n_predict, params.n_parallel = args.max_tokens, args.parallel
    params.sampling.temp = 0  # default for requests without a temperature
    params.cpuparams.n_threads = int(os.environ.get("OMP_NUM_THREADS") or -1)  # -1: one per processor
    params.kv_unified = True  # requests share the model's context; each may fill it
    params.endpoint_metrics, params.ui, params.offline, params.cors_origins = True, False, True, ""
    if args.api_key_env:
        if not (key := os.environ.get(args.api_key_env, "").strip()):
            parser.error(f"no key in the variable {args.api_key_env}")
        params.api_keys = [key]
    server = xllamacpp.Server(params)
    sys.stdout.write(f"listening on {server.listening_address}\n")
    sys.stdout.flush()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
