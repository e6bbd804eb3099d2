"""Timing of requests: single ones, their first token, several at once, and in batches.

Invariant: disturbed timings are repeated once, and marked if they are disturbed again. A request includes its
prompting (shots, retrieval), and an adapter is merged as on a server.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import ceil
from statistics import fmean, median
from time import perf_counter
from typing import NamedTuple

from harness import store
from harness.evaluation import EvaluationJob, evaluate_block
from harness.evaluation.costs import Kind, Work
from harness.evaluation.row_sets import RowSet
from harness.formatting import count, seconds
from harness.models import Candidate, openai_api
from harness.models.hardware import MOST_WAITED, Load, ignores_load, load
from harness.models.hf import merge_adapter
from harness.records import BLOCK, Example, Origin, Run, SampleResult

FEW_REQUESTS, MANY_REQUESTS = 8, 20
AT_ONCE = 8  # default number of concurrent requests
_BESIDE = 2  # requests sent before and after the timed ones
_ROUNDS = 3  # rounds of concurrent requests for timing first tokens
_FEWEST, _LONGEST_S = 5, 10.0  # slow candidates get fewer timed requests, but at least so many
# If a repeated request takes longer by this factor and these seconds, something else was running.
_SPREAD, _NOTICED_S = 1.5, 0.05
_LEAST_S = 0.2  # repeated batches last at least this long, many scheduler time slices


class Latency(NamedTuple):
    """Seconds of the answered single requests, and whether other work disturbed them."""

    times_s: tuple[float, ...]
    contended: bool
    n_failed: int = 0

    @property
    def p50_s(self) -> float:
        """The median."""
        return median(self.times_s)

    @property
    def p95_s(self) -> float:
        """The 95th percentile (nearest rank)."""
        return sorted(self.times_s)[ceil(0.95 * len(self.times_s)) - 1]


def time_requests(
    answer: Callable[[int], object],
    n: int,
    *,
    n_threads: int = 0,
    over_network: bool = False,
    read: Callable[[], Load] = load,
) -> Latency:
    """Time the requests 0 to n − 1, one at a time; if other work disturbed them, once more.

    The first request is also sent before, to warm up, and again at the end, when it should take as long.
    `n_threads` compute all the time, 0 if unknown. Times `over_network` may vary and show no other work here.
    """

    def time_once() -> Latency:
        answer(0)
        readings = [read()]

        def seconds(i: int) -> float:
            answer(i)
            readings.append(read())
            return readings[-1].since(readings[-2]).wall_s

        times = [seconds(0)]
        for i in range(1, n):
            if len(times) >= _FEWEST and readings[-1].since(readings[0]).wall_s > _LONGEST_S:
                break
            times.append(seconds(i))
        fast, slow = sorted((times[0], seconds(0)))
        jumped = not (over_network or ignores_load()) and slow > _SPREAD * fast and slow - fast > _NOTICED_S
        return Latency(tuple(times), jumped or readings[-1].since(readings[0]).is_contended(n_threads))

    first = time_once()
    if not first.contended:
        return first
    return min(first, time_once(), key=lambda latency: (latency.contended, latency.p50_s))


def request_latency(device: str, candidate: Candidate, rows: RowSet, n: int) -> Latency:
    """Time single requests for items of a row set, from the item to the answer; failed ones have no time."""
    job, step = rows.job(), rows.step()
    items, failed_items = rows.measured.examples(rows.split)[:n], set[int]()

    def answer(i: int) -> None:
        (row,) = evaluate_block(candidate, replace(job, examples=(step(items[i]),)), 0)
        if row.finish_reason == "error":
            failed_items.add(i)

    with merge_adapter(candidate):
        is_remote, n_threads = openai_api.is_endpoint(candidate.engine), _n_threads(device, candidate)
        latency = time_requests(answer, len(items), n_threads=n_threads, over_network=is_remote)
    answered_s = tuple(s for i, s in enumerate(latency.times_s) if i not in failed_items)
    return latency._replace(times_s=answered_s, n_failed=len(latency.times_s) - len(answered_s))


def n_timed(n_items: int, *, best: bool = False) -> int:
    """Count the single requests for timing a candidate; with `best` those for timing it again."""
    if not best:
        return min(FEW_REQUESTS, n_items) + _BESIDE
    if n_items <= FEW_REQUESTS:
        return 0
    one_token = min(_FEWEST, n_items) + _BESIDE
    return min(MANY_REQUESTS, n_items) + _BESIDE + one_token + 2 * (1 + _BESIDE) + _ROUNDS + _BESIDE


def time_load(
    device: str, candidate: Candidate, rows: RowSet, *, generates: bool, at_once: int = AT_ONCE
) -> dict[str, float]:
    """Time concurrent requests, in one batch or a thread each; if `generates`, first tokens too."""
    job, step = rows.job(), rows.step()
    items = rows.measured.examples(rows.split)[:at_once]
    one_token = replace(job, task=job.task.model_copy(update={"max_new_tokens": 1}))
    if openai_api.is_endpoint(candidate.engine):
        prompted_items = [(step(item),) for item in items]

        def answer_each(timed_job: EvaluationJob) -> tuple[float, ...]:
            start = perf_counter()

            def answer(examples: tuple[Example, ...]) -> float:
                evaluate_block(candidate, replace(timed_job, examples=examples), 0)
                return perf_counter() - start

            with ThreadPoolExecutor(len(prompted_items)) as threads:  # all requests start together
                return tuple(threads.map(answer, prompted_items))

        answer_times, first_token_times = answer_each(job), answer_each(one_token)
        figures = {"at_once": float(len(items)), "at_once_s": max(answer_times), "at_once_contended": 0.0}
        return figures | _first_token_figures(Latency(first_token_times, contended=False))

    def answer_all(timed_job: EvaluationJob, _: int) -> None:
        evaluate_block(candidate, replace(timed_job, examples=tuple(map(step, items))), 0)

    def answer_one_token(i: int) -> None:
        evaluate_block(candidate, replace(one_token, examples=(step(items[i]),)), 0)

    measure = partial(time_requests, n_threads=_n_threads(device, candidate))
    with merge_adapter(candidate):
        batch = measure(partial(answer_all, job), 1)
        single = measure(answer_one_token, min(_FEWEST, len(items))) if generates else None
        first_tokens = measure(partial(answer_all, one_token), _ROUNDS) if generates else None
    contended = any(latency.contended for latency in (batch, single, first_tokens) if latency)
    return {
        "at_once": float(len(items)),
        "at_once_s": batch.p50_s,
        "at_once_contended": float(contended),
        **({"first_token_s": single.p50_s} if single else {}),
        **(_first_token_figures(first_tokens) if first_tokens else {}),
    }


def _first_token_figures(tokens: Latency) -> dict[str, float]:
    return {"first_token_at_once_p50_s": tokens.p50_s, "first_token_at_once_p95_s": tokens.p95_s}


LearnLoad = Callable[[Kind, Work, Load, str], None]  # `Session.learn_load`


@contextmanager
def learn_requests(learn_load: LearnLoad, candidate: Candidate, n: int) -> Iterator[dict[str, float]]:
    """Record for later estimates how long the block's single requests took, if it fills in their figures."""
    start, figures = load(), dict[str, float]()
    yield figures
    if "p50_s" in figures:
        learn_load("requests", Work(requests=n), load().since(start), candidate.engine)


def measure_prompting(rows: RowSet, n: int) -> float:
    """Return the mean seconds for prompting one request: choosing shots, retrieval, reranking."""
    step, items = rows.step(), rows.measured.examples(rows.split)[:n]
    start = perf_counter()
    for item in items:
        step(item)
    return (perf_counter() - start) / len(items)


def batch_time(at: store.Store, device: str, candidate: Candidate, rows: RowSet) -> tuple[float, bool]:
    """Return the mean seconds of a request in undisturbed blocks, else repeated, and if disturbed."""
    stored_rows = store.read_rows(at, rows.identity.digest)
    origins = store.origins(at, rows.identity.digest)
    quiet_rows = [row for row in stored_rows if not origins.get(row.position // BLOCK, Origin()).contended]
    if quiet_rows:
        return _mean_s(quiet_rows), False
    start = load()
    repeated_rows: list[SampleResult] = []
    while not repeated_rows or load().since(start).wall_s < _LEAST_S:
        repeated_rows += rows.measured.evaluate(candidate, rows.job(), 0)
    if load().since(start).is_contended(_n_threads(device, candidate)):
        return min(_mean_s(stored_rows), _mean_s(repeated_rows)), True
    return _mean_s(repeated_rows), False


def latency_figures(latency: Latency) -> dict[str, float]:
    """Return the times of single requests as a run stores them, none if all requests failed."""
    figures = {"p50_s": latency.p50_s, "p95_s": latency.p95_s} if latency.times_s else {}
    figures |= {"n_failed": float(latency.n_failed)} if latency.n_failed else {}
    return figures | {"n": float(len(latency.times_s)), "contended": float(latency.contended)}


def wants_more(run: Run, n_items: int, at_once: int | None = None) -> bool:
    """Tell whether timing more requests would help: more items or another load, or disturbed times."""
    n = run.latency.get("n", 0.0) + run.latency.get("n_failed", 0.0)
    is_other_load = at_once is not None and run.latency.get("at_once") != min(n_items, at_once)
    return bool(run.latency.get("contended")) or n == FEW_REQUESTS < n_items or is_other_load


def describe_timing(runs: Iterable[Run]) -> list[str]:
    """Describe how long the runs' single requests took, and which figures other work disturbed."""
    timed_runs = [run for run in runs if run.state == "done" and "p95_s" in run.latency]
    texts = []
    for run in timed_runs:
        if not run.latency["contended"]:
            p50, p95 = (seconds(run.latency[name]) for name in ("p50_s", "p95_s"))
            texts.append(f"{run.label} {p50} (95 % within {p95}, {run.latency['n']:.0f} timed)")
    single = _names(run for run in timed_runs if run.latency["contended"])
    batch = _names(run for run in timed_runs if run.latency["compute_contended"])
    slowed = _names(run for run in timed_runs if (run.training.waited_share or 0.0) > MOST_WAITED)
    notes = [f"time of one request: {', '.join(texts)}"] if texts else []
    under_load = []
    for run in (run for run in timed_runs if run.latency.get("at_once_contended") == 0):
        n, all_s = run.latency["at_once"], run.latency["at_once_s"]
        first, all_first = (run.latency.get(n) for n in ("first_token_s", "first_token_at_once_p50_s"))
        alone_text = f"; one alone has its first token after {seconds(first)}" if first is not None else ""
        together_text = f", their first tokens after {seconds(all_first)}" if all_first is not None else ""
        rate = f"{n / all_s:.1f}" if n / all_s < 10 else count(n / all_s)
        rate_text = f"{run.label} answers {n:.0f} within {seconds(all_s)} ({rate} a second)"
        under_load.append(f"{rate_text}{together_text}{alone_text}")
    notes += [f"several requests at once: {'; '.join(under_load)}"] if under_load else []
    remark = "were disturbed by other work on this machine, twice: marked ~ and left out of the decision"
    notes += [f"latencies of {single} {remark}"] if single else []
    notes += [f"costs and requests a second of {batch} {remark}"] if batch else []
    notes += [f"{slowed} trained while other work ran: an idle machine takes less time"] if slowed else []
    return notes


def _names(runs: Iterable[Run]) -> str:
    return ", ".join(dict.fromkeys(run.candidate for run in runs))


def _mean_s(rows: Iterable[SampleResult]) -> float:
    return fmean(row.compute_s for row in rows)


def _n_threads(device: str, candidate: Candidate) -> int:
    return 1 if (device == "cpu" and candidate.engine.startswith("transformers")) else 0
