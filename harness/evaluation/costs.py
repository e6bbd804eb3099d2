"""Work and pace: tokens that an experiment reads, generates and trains on, seconds for them, and a budget.

Invariant: a request starts only if past costs, the highest cost of running requests and its own highest cost
are within the budget. As prompt tokens are estimated until an answer reports them, the first request is sent
alone, and later estimates are multiplied by the largest ratio seen; the same holds for answer tokens beyond
the allowed ones (hidden thinking). Disturbed work leaves the pace unchanged; older measurements count less.
Source: 2 N floating-point operations per token read or generated, 4 N per token trained with low-rank
adapters (Kaplan et al. 2020; no gradients of frozen weights), 2 N more if activations are recomputed, as on
GPUs. For a mixture of experts N counts the parameters that a token uses
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import exp
from pathlib import Path
from threading import Condition
from typing import Literal, NamedTuple

from harness.cache import cache_dir, recall, remember
from harness.errors import CandidateFailed
from harness.formatting import count, usd
from harness.models.hardware import STEP_TOKENS, Machine
from harness.records import BLOCK, Example, TokenCounts, digest
from harness.spec import TokenPrices

Spend = Callable[[float | None, int, int], None]
"""Counts an answer: its cost in USD, None if unknown, and the tokens read and written."""


class Words(NamedTuple):
    """Words for refusing a request: the option that sets the budget, its place, and what is paid for."""

    option: str = "--max-cost"
    where: str = ""
    paid: str = "answers"


class Budget:
    """Budget in USD; `n` answers have cost `spent` (None: unknown). `price` maps tokens to USD."""

    def __init__(
        self,
        limit_usd: float,
        price: Callable[[float, float], float],
        spent: float | None = 0.0,
        n: int = 0,
        words: Words = Words(),  # noqa: B008 (a constant)
    ) -> None:
        self._most, self._price, self._words = limit_usd, price, words
        self._spent, self._n = spent, n
        self._under_way: list[float] = []
        self._ratio: float | None = None  # largest ratio of a prompt's tokens to their estimate
        self._written_ratio = 1.0  # largest ratio of an answer's tokens to the allowed ones
        self._changed = Condition()

    @contextmanager
    def reserve(self, n_prompt: int, n_answer: int) -> Iterator[Spend]:
        """Reserve a request's cost by its tokens, or wait for running ones; CandidateFailed if too much."""
        option, where, paid = self._words
        with self._changed:
            while True:
                if self._spent is None:
                    found = f"{paid} without usage, so what they cost is unknown, and {option} is"
                    step = f"a server that counts tokens, or no {option}{where}"
                    raise CandidateFailed(f"{found} {self._most:g}", step)
                usd_at_most = self._price(n_prompt * (self._ratio or 1.0), n_answer * self._written_ratio)
                fits = self._spent + sum(self._under_way) + usd_at_most <= self._most
                if fits and not (self._ratio is None and self._under_way):
                    break
                if not self._under_way:
                    text = f"{count(self._n)} {paid} have cost {usd(self._spent)} USD"
                    found = f"{text}, the next may cost {usd(usd_at_most)}, and {option} is {self._most:g}"
                    raise CandidateFailed(found, f"a larger {option}{where}; the {paid} so far are kept")
                self._changed.wait()
            self._under_way.append(usd_at_most)

        def spend(cost_usd: float | None, n_read: int, n_written: int) -> None:
            with self._changed:
                unknown = self._spent is None or cost_usd is None
                self._spent = None if unknown else (self._spent or 0.0) + (cost_usd or 0.0)
                self._n += 1
                self._ratio = max(self._ratio or 0.0, n_read / max(1, n_prompt))
                self._written_ratio = max(self._written_ratio, n_written / max(1, n_answer))

        try:
            yield spend
        finally:
            with self._changed:
                self._under_way.remove(usd_at_most)
                self._changed.notify_all()


Kind = Literal["answering", "training", "fits", "opened", "requests", "runs"]
_PRIOR_S = 5.0  # weight of the first estimate, in estimated seconds
_MEMORY_S = 600.0  # estimated seconds after which a measurement counts a third
_LEAST, _MOST = 0.1, 10.0
_MOST_EACH = 50.0  # upper bound as a multiple of the assumption


class Rate(NamedTuple):
    """Measured seconds per estimated second of tokens, and seconds per unit of other work."""

    ratio: float = 1.0
    each_s: float = 0.0


class Pace(NamedTuple):
    """Rates of answering in blocks, of training in steps, and of work without tokens.

    Rates are assumed until measured: those of 135 million parameters on two CPU cores with AMX (an adapter
    answers more slowly than its base), and on an H200. `fits` are trainings without their steps, `opened`
    weights made ready to answer, `requests` single timed requests, `runs` the rest of a comparison.
    """

    answering: Rate = Rate(1.25, 0.1)
    training: Rate = Rate(1.25, 0.1)
    fits: Rate = Rate(each_s=12.0)
    opened: Rate = Rate(each_s=0.3)
    requests: Rate = Rate(each_s=0.3)
    runs: Rate = Rate(each_s=0.5)


_ASSUMED = {"cpu": Pace(), "cuda": Pace(*(Rate(each_s=s) for s in (2.0, 0.2, 5.0, 1.0, 0.5, 1.0)))}


class _Sums(NamedTuple):
    """Sums over measurements at 1 GFLOP/s: seconds `s` of tokens, units `n`, `took` seconds; aged."""

    s_s: float = 0.0
    s_n: float = 0.0
    n_n: float = 0.0
    s_took: float = 0.0
    n_took: float = 0.0

    def rate(self, prior: Rate, gflops: float) -> Rate:
        """Solve for the rate by least squares, with the assumption as one more measurement of each part."""
        n_n, n_took = self.n_n + 1 / prior.each_s, self.n_took + 1.0
        s_s, s_took = self.s_s / gflops**2 + _PRIOR_S, self.s_took / gflops + prior.ratio * _PRIOR_S
        s_n, most_s = self.s_n / gflops, _MOST_EACH * prior.each_s
        each_s = (s_s * n_took - s_n * s_took) / (s_s * n_n - s_n**2)
        ratio = min(max((s_took - s_n * min(max(each_s, 0.0), most_s)) / s_s, _LEAST), _MOST)
        return Rate(ratio, min(max((n_took - s_n * ratio) / n_n, 0.0), most_s))


def read_pace(machine: Machine, n_parameters: int) -> Pace:
    """Read the pace measured here for a model of this size."""
    sums_by_kind = _read(machine, n_parameters)
    prior = _ASSUMED[machine.device]
    rates = {kind: sums.rate(getattr(prior, kind), machine.gflops) for kind, sums in sums_by_kind.items()}
    return prior._replace(**rates)


def record_pace(
    machine: Machine, n_parameters: int, kind: Kind, estimated_s: float, n: float, took_s: float
) -> None:
    """Record that `n` units with tokens estimated at `estimated_s` seconds took `took_s` seconds."""
    expected_s = estimated_s + n * getattr(_ASSUMED[machine.device], kind).each_s
    if expected_s <= 0:
        return
    sums_by_kind = _read(machine, n_parameters)
    discount, old_sums = exp(-expected_s / _MEMORY_S), sums_by_kind.get(kind, _Sums())
    s = estimated_s * machine.gflops
    pairs = zip(old_sums, (s * s, s * n, n * n, s * took_s, n * took_s), strict=True)
    sums_by_kind[kind] = _Sums(*(discount * before + new / expected_s for before, new in pairs))
    with suppress(OSError):  # a read-only cache only costs accuracy
        remember(_file(machine, n_parameters), sums_by_kind)


def _read(machine: Machine, n_parameters: int) -> dict[str, _Sums]:
    with suppress(OSError, ValueError):
        raw = recall(_file(machine, n_parameters))
        return {kind: _Sums(*map(float, raw[kind])) for kind in Pace._fields if kind in raw}
    return {}


def _file(machine: Machine, n_parameters: int) -> Path:
    key = digest(["passes", machine.name, machine.device, machine.precision, n_parameters, _Sums._fields])
    return cache_dir() / "pace" / f"{key}.json"


# Characters per token in English prose with a vocabulary of some 50,000.
_CHARS_PER_TOKEN = 4.0
# Bytes per token outside ASCII: such a vocabulary has 1.6 to 2.3 in Thai, Japanese, Arabic, Chinese, Russian
# and Hindi. A vocabulary made for a language has more (Petrov et al. 2023, arXiv:2305.15425).
_BYTES_PER_TOKEN = 2.0
CHAT_TOKENS = 12


# Shares of the speed of a large matrix product that reading, generating and training reach, without timed
# steps, as on a GPU: the usual values of models with 1 to 8 billion parameters. About half of the allowed
# tokens are generated.
_READ_SHARE, _GENERATE_SHARE, TRAIN_SHARE = 0.4, 0.08, 0.42
_LEAST_SLOPE = 0.25  # time of a further token, as a share of the mean in the long step
# Operations per parameter and trained token: GPUs recompute activations.
_TRAIN_OPERATIONS = {"cpu": 4, "cuda": 6}

# Prices of a device hour in USD, as of November 2026: two virtual CPU cores, and one
# data-centre GPU, on demand at the usual clouds. `decide.device_hour_usd` overrides them.
DEVICE_HOUR_USD = {"cpu": 0.10, "cuda": 2.50}


class Work(NamedTuple):
    """Tokens to read, generate (at most) and train; steps, fits, openings, blocks, requests, runs."""

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
        shares = _READ_SHARE, _GENERATE_SHARE, TRAIN_SHARE
        read, generate, train, *short = machine.step_speeds or [machine.gflops * share for share in shares]
        operations = _TRAIN_OPERATIONS[machine.device] * n_parameters / 1e9
        token_s, step_s = operations / train, 0.0
        if short:  # a line through the times of the two steps
            (long_n, short_n), short_s = STEP_TOKENS, operations * STEP_TOKENS[1] / short[0]
            per_token_s = (operations * long_n / train - short_s) / (long_n - short_n)
            token_s = max(_LEAST_SLOPE * token_s, per_token_s)  # both times are noisy
            step_s = max(0.0, short_s - short_n * token_s)
        answering_s = 2 * n_parameters / 1e9 * (self.read / read + self.generated / generate)
        return answering_s + token_s * self.trained + step_s * self.steps


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
    """Estimate the work of answering examples; shared beginnings of answers are read once per block."""
    columns = zip(*(e.messages for e in examples), strict=False)
    n_shared = next((i for i, column in enumerate(columns) if any(m != column[0] for m in column)), 0)
    n_read = n_generated = 0
    for index, example in enumerate(examples):
        is_ranked = ranked and example.choices
        n_skipped = 0 if is_ranked or index % BLOCK == 0 else n_shared
        n_read += sum(tokens(m["content"]) + chat * CHAT_TOKENS for m in example.messages[n_skipped:])
        n_read += sum(map(tokens, example.choices)) if is_ranked else 0
        n_read += 0 if example.messages else sum(map(tokens, example.references[:1]))
        n_generated += 0 if is_ranked or not example.messages else max_new_tokens
    return Work(read=n_read, generated=n_generated)


def times(work: Work, n: int) -> Work:
    """Return a multiple of an amount of work."""
    return Work(*(n * amount for amount in work))


def training(examples: Sequence[Example], epochs: float, batch_size: int = 1) -> Work:
    """Estimate the tokens to train on; rows of a batch with the same system message read it once."""
    own_tokens = 0
    for e in examples:
        own_tokens += sum(tokens(m["content"]) + CHAT_TOKENS for m in e.messages[e.has_system :])
        own_tokens += tokens(e.references[0])
    n_batches = len(examples) / batch_size
    systems = Counter(e.messages[0]["content"] for e in examples if e.has_system)
    shared_tokens = 0.0
    for text, n in systems.items():
        share_of_batches = 1 - (1 - n / len(examples)) ** batch_size
        shared_tokens += n_batches * share_of_batches * (tokens(text) + CHAT_TOKENS)
    return Work(trained=round((own_tokens + shared_tokens) * epochs))


def describe_longer(examples: Sequence[Example], max_length: int, rows: str, limit: str) -> str:
    """Describe how many `rows` are estimated to be too long for a training; empty if none."""
    if not (n := sum(training([example], 1).trained > max_length for example in examples)):
        return ""
    text = f"about {count(n)} of {rows} are longer than {limit}, by the length of texts, and left out"
    return f"{text}; next: a larger params.max_length, or shorter rows"


def preference(pairs: Sequence[Example], epochs: float) -> Work:
    """Estimate the work of training on pairs: both answers, and the reference model's pass over them."""
    n_tokens = 0
    for pair in pairs:
        n_tokens += 2 * sum(tokens(m["content"]) + CHAT_TOKENS for m in pair.messages)
        n_tokens += sum(map(tokens, (*pair.references, pair.rejected)))
    return Work(read=n_tokens, trained=round(n_tokens * epochs))


def tokens_usd(prices: TokenPrices, read: float, written: float) -> float:
    """Price tokens that are read and written, without cached ones."""
    return request_usd(TokenCounts(read, 0, written), prices)


def request_usd(tokens: TokenCounts, prices: TokenPrices) -> float:
    """Price one request by its tokens; the shared beginning costs the price of cached tokens."""
    cached_usd = prices.input if prices.cached is None else prices.cached
    read_usd = (tokens.prompt - tokens.cached) * prices.input + tokens.cached * cached_usd
    return (read_usd + tokens.output * prices.output) / 1e6


def price_usd(seconds: float, device: str, device_hour_usd: float | None) -> float:
    """Price device time; the default price per hour is the device's."""
    return seconds * (DEVICE_HOUR_USD[device] if device_hour_usd is None else device_hour_usd) / 3600
