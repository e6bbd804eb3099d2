"""What others have published of vLLM and Unsloth, with card and address; nobody here has measured it.

Invariant: each figure was read at the address that stands beside it, and what it is a ratio of is said.
"""

from bench_page import Table

_COLUMNS = ("of", "figure, as published", "model", "card", "read at")
_TRL = "[TRL 0.21's documentation](https://huggingface.co/docs/trl/v0.21.0/unsloth_integration)"
_A100 = "one A100 of 40 GB"
_LINES = (
    (
        "Unsloth",
        "1.94 times as fast as transformers, 22.7 % less memory",
        "Code Llama 34B, SlimOrca",
        _A100,
        _TRL,
    ),
    (
        "Unsloth",
        "1.87 times as fast as transformers, 39.3 % less memory",
        "Llama-2 7B, SlimOrca",
        _A100,
        _TRL,
    ),
    (
        "Unsloth",
        "1.88 times as fast as transformers, 65.9 % less memory",
        "Mistral 7B, SlimOrca",
        _A100,
        _TRL,
    ),
    (
        "Unsloth",
        "2.74 times as fast as transformers, 57.8 % less memory",
        "TinyLlama 1.1B, Alpaca",
        _A100,
        _TRL,
    ),
    (
        "vLLM 0.23.0",
        "some 75 tokens/s at one request, 6.6 times that at eight (1,024 tokens in, 128 out)",
        "Llama-3.1-8B-Instruct, bf16",
        _A100,
        "[J. Musgrave's sweep](https://johnmusgrave.com/p/vllm-throughput-latency-sweep-on)",
    ),
    (
        "vLLM",
        "some 12,500 tokens/s",
        "Llama 3.1 8B, bf16",
        "one H100 of 80 GB",
        "[Morph's collection of others' figures, 2026](https://www.morphllm.com/vllm-benchmarks)",
    ),
    (
        "vLLM 0.6.0",
        "2.7 times the throughput of its own 0.5.3 (ShareGPT, 500 prompts)",
        "Llama 8B",
        "one H100",
        "[a copy of vLLM's blog of 5 September 2024](https://folu.me/post/oybt-d-diyyz-d-dnv/2024/09/05/perf-update-d-dhtml)",
    ),
)

PUBLISHED = Table(
    "As published by others, on other cards and texts, and measured by nobody here:", _COLUMNS, _LINES
)
