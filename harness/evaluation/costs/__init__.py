"""Cost estimates: tokens that an experiment reads, generates and trains on, with their time and price.

Invariant: pure arithmetic on texts and sizes, without a tokenizer or a model; measured figures take
precedence as soon as there are any.
Source: 2 N floating-point operations per token read or generated, 4 N per token trained with low-rank
adapters (Kaplan et al. 2020; the backward pass skips the frozen weights' gradients), and 2 N more if
activations are recomputed, as on GPUs. For a mixture of experts N counts the parameters that a token uses.
"""

from collections.abc import Sequence
from typing import NamedTuple

from harness.evaluation.costs.budget import Budget, Spend
from harness.formatting import count
from harness.models.hardware import Machine
from harness.records import BLOCK, Example
from harness.spec import TokenPrices

# Characters per token in English prose with a vocabulary of some 50,000.
_CHARS_PER_TOKEN = 4.0
# Bytes per token outside ASCII: such a vocabulary has 1.6 to 2.3 in Thai, Japanese, Arabic, Chinese, Russian
# and Hindi. A vocabulary made for a language has more (Petrov et al. 2023, arXiv:2305.15425).
_BYTES_PER_TOKEN = 2.0
CHAT_TOKENS = 12


class Shares(NamedTuple):
    """Shares of the speed of a large matrix product that reading, generating and training reach."""

    read: float
    generate: float
    train: float


# Without timed steps, as on a GPU: the usual values of models with 1 to 8 billion parameters. About half of
# the allowed tokens are generated.
SHARES = Shares(0.4, 0.08, 0.42)
# Operations per parameter and trained token: GPUs recompute activations.
_TRAIN_OPERATIONS = {"cpu": 4, "cuda": 6}

# Prices of a device hour in USD, as of November 2026: two virtual CPU cores, and one
# data-centre GPU, on demand at the usual clouds. `decide.device_hour_usd` overrides them.
DEVICE_HOUR_USD = {"cpu": 0.10, "cuda": 2.50}
# Assumed value of one more right answer in USD, as of November 2026, so that volume counts by default.
# `decide.right_answer_usd` overrides it.
RIGHT_ANSWER_USD = 1.0


class TokenCounts(NamedTuple):
    """Mean tokens of one request: of its prompt, of the beginning shared by all prompts, of its answer."""

    prompt: float
    cached: float
    output: float


class Work(NamedTuple):
    """Tokens to read, to generate (at most) and to train, and other work that takes time.

    That is optimiser `steps`, trainings (`fits`), weights `opened` to answer, `blocks` of rows answered and
    written, single `requests` to time, and finished `runs`.
    """

    read: int = 0
    generated: int = 0
    trained: int = 0
    steps: int = 0
    fits: int = 0
    opened: int = 0
    blocks: int = 0
    requests: int = 0
    runs: int = 0

    def __add__(self, other: "Work") -> "Work":  # type: ignore[override]
        """Add up two amounts of work."""
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    def seconds(self, n_parameters: float, machine: Machine) -> float:
        """Estimate the time for these tokens on a machine, by the speeds of steps that were timed there."""
        speeds = machine.step_speeds or [machine.gflops * share for share in SHARES]
        operations = 2 * self.read, 2 * self.generated, _TRAIN_OPERATIONS[machine.device] * self.trained
        return n_parameters / 1e9 * sum(n / speed for n, speed in zip(operations, speeds, strict=True))


# Start of a GPU's context and libraries, and reading speed of weights from disk: assumptions.
_START_S, _READ_BYTES_PER_S = 10.0, 1.5e9


def start_s(n_bytes: float, device: str) -> float:
    """Estimate how long a GPU takes to start and to load weights; 0 for a CPU, which reads them in place."""
    return _START_S + n_bytes / _READ_BYTES_PER_S if device == "cuda" else 0.0


def tokens(text: str) -> int:
    """Estimate the tokens of a text from its ASCII characters and its other bytes."""
    n_ascii = len(text.encode("ascii", "ignore"))
    n_others = len(text.encode("utf-8", "surrogatepass")) - n_ascii
    return max(1, round(n_ascii / _CHARS_PER_TOKEN + n_others / _BYTES_PER_TOKEN))


def estimate_answering(
    examples: Sequence[Example], *, ranked: bool, max_new_tokens: int, chat: bool = True
) -> Work:
    """Estimate the work of answering these examples; ranked items read their choices instead.

    When answers are generated, messages shared by the beginning of all examples are read once per block.
    """
    n_shared = _n_shared(examples)
    n_read = n_generated = 0
    for number, example in enumerate(examples):
        closed = ranked and example.choices
        once = 0 if closed or number % BLOCK == 0 else n_shared
        n_read += sum(tokens(m["content"]) + chat * CHAT_TOKENS for m in example.messages[once:])
        n_read += sum(map(tokens, example.choices)) if closed else 0
        n_read += 0 if example.messages else sum(map(tokens, example.references[:1]))
        n_generated += 0 if closed or not example.messages else max_new_tokens
    return Work(read=n_read, generated=n_generated)


def _n_shared(examples: Sequence[Example]) -> int:
    """Count the messages shared by the beginning of all examples."""
    columns = zip(*(e.messages for e in examples), strict=False)
    return next((i for i, column in enumerate(columns) if any(m != column[0] for m in column)), 0)


def times(work: Work, n: int) -> Work:
    """Return a multiple of an amount of work."""
    return Work(*(n * amount for amount in work))


def training(examples: Sequence[Example], epochs: float) -> Work:
    """Estimate the tokens to train on."""
    once = sum(
        sum(tokens(m["content"]) + CHAT_TOKENS for m in e.messages) + tokens(e.references[0])
        for e in examples
    )
    return Work(trained=round(once * epochs))


def describe_longer(examples: Sequence[Example], max_length: int, rows: str, limit: str) -> str:
    """Estimate how many `rows` are too long for a training, and say so; empty without any."""
    if not (n := sum(training([example], 1).trained > max_length for example in examples)):
        return ""
    return (
        f"about {count(n)} of {rows} are longer than {limit}, by the length of their texts, and left out; "
        "next: a larger params.max_length, or shorter rows"
    )


def preference(pairs: Sequence[Example], epochs: float) -> Work:
    """Estimate the work of training on pairs: both answers, and the reference model's pass over them."""
    once = sum(
        2 * sum(tokens(m["content"]) + CHAT_TOKENS for m in pair.messages)
        + sum(map(tokens, pair.references))
        + tokens(pair.rejected)
        for pair in pairs
    )
    return Work(read=once, trained=round(once * epochs))


def request_usd(tokens: TokenCounts, prices: TokenPrices) -> float:
    """Price one request by its tokens; the shared beginning costs the price of cached tokens."""
    cached_usd = prices.input if prices.cached is None else prices.cached
    read_usd = (tokens.prompt - tokens.cached) * prices.input + tokens.cached * cached_usd
    return (read_usd + tokens.output * prices.output) / 1e6


def price_usd(seconds: float, device: str, device_hour_usd: float | None) -> float:
    """Price device time; the default price per hour is the device's."""
    hour = DEVICE_HOUR_USD[device] if device_hour_usd is None else device_hour_usd
    return seconds * hour / 3600
