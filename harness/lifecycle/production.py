"""Feedback from production: drift of requests and answers, and thumbs of two models.

Stored requests are compared with the test items, answers with the champion's. At most one row per sender,
per cluster of test items and per text counts. Without random assignment, models answered different requests,
so no difference of thumbs is estimated. Source: Gretton et al. 2012, A Kernel Two-Sample Test; Holm 1979.
"""

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np

from harness import config, data, stats, store
from harness.config import LoadedExperiment
from harness.data.contamination import open_encoder
from harness.errors import UserError
from harness.evaluation import answer_status
from harness.evaluation.languages import classify
from harness.formatting import count, p_value, percent, plain, pluralize, points, quote
from harness.lifecycle.feedback import mask_example
from harness.records import Example, FeedbackRow, SampleResult
from harness.report import ResultDocument, Section
from harness.stats import Array
from harness.store import Store

ALPHA = 0.05  # chance of any alarm if nothing has moved
MOST_ROWS = 1000  # of each sample
SENTENCE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_FEATURES = 50  # of parts of words, without a sentence model
_READ = 2000  # characters of a text that are embedded
_NEAREST = 3
_POWER = 0.8
_ROUNDING = 1e-7
_BEYOND = 0.05  # a request is "beyond" below this quantile of test items' similarity to their nearest item

Kind = Literal["requests", "answers"]
# Maps texts to vectors (n, k) of length 1, and names the embedding.
Embed = Callable[[Sequence[str]], tuple[Array, str]]


@dataclass(frozen=True, slots=True)
class DriftTest:
    """Test of one trait of requests or answers: the `effect` in words, its p, and the p adjusted by Holm.

    A trait whose distance is the same in all splits, such as no refusals in either sample, cannot move and
    is left out of Holm's adjustment.
    """

    of: Kind
    trait: str
    effect: str
    p: float
    can_move: bool
    p_adjusted: float = 1.0

    @property
    def has_moved(self) -> bool:
        """Whether chance alone does not explain the change."""
        return self.p_adjusted <= ALPHA


@dataclass(frozen=True, slots=True)
class Drift:
    """Result of all tests; `power` maps shares of requests on one new topic to the chance to see them."""

    n_requests: int
    n_compared: int
    n_test_items: int
    embedding: str
    tests: tuple[DriftTest, ...]
    nearest: tuple[dict[str, Any], ...]
    power: dict[float, float]
    notes: tuple[str, ...]
    sentence: str


class _Texts(NamedTuple):
    """Two samples of texts in one list: first the `n_before` measured ones, then those from production."""

    texts: list[str]
    n_before: int

    def shares(self, holds: Sequence[bool]) -> tuple[float, float]:
        """Return the shares of both samples in which something holds."""
        return float(np.mean(holds[: self.n_before])), float(np.mean(holds[self.n_before :]))


def embed_parts_of_words(texts: Sequence[str]) -> tuple[Array, str]:
    """Return vectors (n, k) of length 1 by the letters of the texts, and what they are called."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.utils.extmath import randomized_svd

    tfidf = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4), sublinear_tf=True, max_features=20_000)
    counts = tfidf.fit_transform([f"{text} ..." for text in texts])  # a text without words has one part
    left_vectors, values, _ = randomized_svd(counts, min(_FEATURES, *counts.shape), random_state=0)
    x = left_vectors * values  # (n, k)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1), "parts of words (TF-IDF of 3 and 4 letters)"


def open_embedding() -> Embed:
    """Open the sentence model if it is cached and its package is installed; otherwise use parts of words."""
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(SENTENCE_MODEL, "config.json"), str):
        with suppress(UserError):  # the extra `dense` is not installed
            encode = open_encoder(SENTENCE_MODEL, "monitor")
            return lambda texts: (encode(texts).astype(float), SENTENCE_MODEL)
    return embed_parts_of_words


def monitor(path: Path, overrides: Sequence[str] = (), *, since: str = "") -> Drift:
    """Compare the stored feedback of an experiment with its test set; `since` is the first date to read."""
    loaded = config.load(path, overrides)
    stored = store.read_feedback(Store(loaded.folder / "runs"))
    rows = [row for row in stored if row.time >= since]
    if not rows:
        found = f"no row since {since}, of {pluralize(len(stored), 'row')}" if stored else "no feedback"
        step = "an earlier --since" if stored else loaded.typed.command("feedback", "add", "FILE")
        raise UserError("monitor", found, "stored requests and answers", step)
    n_undated = sum(not row.time for row in stored) if since else 0
    undated = [f"{pluralize(n_undated, 'row')} without a time left out"] if n_undated else []
    return find_drift(loaded, rows, undated)


def find_drift(loaded: LoadedExperiment, rows: Sequence[FeedbackRow], notes: Sequence[str] = ()) -> Drift:
    """Compare rows of feedback with the test items of the target, and with the champion's answers to them."""
    target = loaded.experiment.target
    rows_of_test = data.load_task(target, loaded.experiment.seeds[0]).evaluated["test"]
    items = [mask_example(row.example, loaded.experiment.feedback.region) for row in rows_of_test]
    champion = store.read_champion(loaded.folder, target.name)
    answers: list[SampleResult] = []
    if champion is not None:
        answers = store.read_rows(Store(loaded.folder / "runs"), champion.rows[f"{target.name}/test"])
    else:
        step = loaded.typed.command("promote")
        notes = [*notes, f"no champion: answers are compared with nothing; next: {step}"]
    measure = loaded.typed.command("compare")
    return compare_samples(items, answers, rows, target.labels, measure, notes, open_embedding())


def compare_samples(
    items: Sequence[Example],
    answers: Sequence[SampleResult],
    rows: Sequence[FeedbackRow],
    labels: Sequence[str] = (),
    measure: str = "harness compare",
    notes: Sequence[str] = (),
    embed: Embed = embed_parts_of_words,
    seed: int = 0,
) -> Drift:
    """Compare samples of test items, answers to them and production rows; `measure` is the next command."""
    before = _draw([(item.prompt, item.cluster) for item in items], seed)
    after = _draw([(row.request, row.sender) for row in rows], seed)
    n_before, n_after = len(before), len(after)
    if not before or not after:
        found = f"{pluralize(n_before, 'test item')} and {pluralize(n_after, 'request')}"
        raise UserError("monitor", found, "some of both", "add rows to the one that has none")
    texts = [*(items[i].prompt for i in before), *(rows[i].request for i in after)]
    for direction in (1, -1):  # remove the template: words with which all texts of a sample begin or end
        turned = [text[::direction] for text in texts]
        shared = _find_shared(turned[:n_before]), _find_shared(turned[n_before:])
        texts = [text.removeprefix(shared[0]).removeprefix(shared[1])[::direction] for text in turned]
    requests = _Texts(texts, n_before)
    weights = stats.split_weights(n_before, n_after, seed=seed)
    vectors, embedding = embed([text[:_READ] for text in requests.texts])
    kernel = stats.gaussian_kernel(vectors)
    answered, remarks = [row for row in rows if row.answer and answers], list[str]()
    models = Counter(row.model for row in answered)
    if len(models) > 1:
        (model, n), *other_models = models.most_common()
        names = ", ".join(name or "unnamed" for name, _ in other_models)
        answered = [row for row in answered if row.model == model]
        remarks = [f"answers are those of {model or 'the unnamed model'} ({count(n)} rows), without {names}"]
    unadjusted = [*_test_requests(weights, kernel, requests), *_test_answers(answers, answered, labels, seed)]
    # Holm's adjustment covers the tests that can move, which the pooled rows show whatever their order.
    adjusted = iter(stats.holm([test.p for test in unadjusted if test.can_move]))
    tests = tuple(replace(test, p_adjusted=next(adjusted)) if test.can_move else test for test in unadjusted)
    test_kernel, alpha = kernel[:n_before, :n_before], ALPHA / max(sum(test.can_move for test in tests), 1)
    power = stats.topic_power(test_kernel, n_before, n_after, alpha, seed)
    if n_unknown := sum(not row.sender for row in rows):
        remarks.append(f"{pluralize(n_unknown, 'request')} without a sender: each has one of its own")
    has_moved = any(test.has_moved for test in tests if test.of == "requests")
    return Drift(
        n_requests=len(rows),
        n_compared=n_after,
        n_test_items=n_before,
        embedding=embedding,
        tests=tests,
        nearest=tuple(_nearest(vectors, kernel, requests)) if has_moved else (),
        power=power,
        notes=(*notes, *remarks),
        sentence=_conclude(tests, power, n_after, measure),
    )


def _test(kind: Kind, trait: str, effect: str, distances: Array) -> DriftTest:
    return DriftTest(kind, trait, effect, stats.permutation_p(distances), bool(np.ptp(distances) > _ROUNDING))


def _draw(keys: Sequence[tuple[str, ...]], seed: int) -> list[int]:
    """Draw indices of at most `MOST_ROWS` rows that share no key: a text, a sender or a cluster."""
    indices, used_keys, drawn_indices = list(range(len(keys))), set[tuple[int, str]](), list[int]()
    random.Random(seed).shuffle(indices)
    for index in indices:
        row_keys = {(kind, key) for kind, key in enumerate(keys[index]) if key}
        if len(drawn_indices) < MOST_ROWS and not row_keys & used_keys and keys[index][0].strip():
            used_keys |= row_keys
            drawn_indices.append(index)
    return drawn_indices


def _find_shared(texts: Sequence[str]) -> str:
    """Return the whole words with which all texts begin; empty for fewer than two texts."""
    shared = os.path.commonprefix([*texts]) if len(texts) > 1 else ""  # noqa: RUF071 (of letters)
    return shared[: max(map(shared.rfind, " \n\t")) + 1]


def _test_requests(weights: stats.Weights, kernel: stats.Weights, requests: _Texts) -> Iterator[DriftTest]:
    distances, n_before = stats.kernel_distances(weights, kernel), requests.n_before
    similarity = kernel[:, :n_before].copy()  # (n, n before)
    similarity[np.arange(n_before), np.arange(n_before)] = -1  # no item is its own neighbour
    nearest = similarity.max(axis=1)
    beyond = float((nearest[n_before:] < np.quantile(nearest[:n_before], _BEYOND)).mean())
    effect = (
        f"MMD {plain(distances[0] ** 0.5)}, by chance {plain(distances[1:].mean() ** 0.5)};"
        f" {percent(beyond)} % of requests beyond the test items, by chance {percent(_BEYOND)} %"
    )
    yield _test("requests", "texts", effect, distances)
    yield _test_lengths("requests", weights, requests)
    languages = [classify(text[:_READ]) or "unclear" for text in requests.texts]
    shares = {name: requests.shares([language == name for language in languages]) for name in set(languages)}
    largest = sorted(shares, key=lambda name: (-abs(shares[name][1] - shares[name][0]), name))[:3]
    effect = ", ".join(f"{n} {percent(shares[n][0])} → {percent(shares[n][1])} %" for n in largest)
    yield _test("requests", "language", effect, stats.category_distances(weights, languages))


def _test_lengths(about: Kind, weights: stats.Weights, samples: _Texts) -> DriftTest:
    lengths = [len(text) for text in samples.texts]
    medians = [count(median(sample)) for sample in (lengths[: samples.n_before], lengths[samples.n_before :])]
    effect = f"median {' → '.join(medians)} characters"
    return _test(about, "length", effect, stats.rank_distances(weights, lengths))


def _test_answers(
    answers: Sequence[SampleResult], rows: Sequence[FeedbackRow], labels: Sequence[str], seed: int
) -> Iterator[DriftTest]:
    sound_rows = [row for row in answers if row.status not in ("error", "incomplete")]
    before = _draw([(row.prompt, row.cluster) for row in sound_rows], seed)
    after = _draw([(row.request, row.sender) for row in rows], seed)
    if not before or not after:
        return
    samples = _Texts([*(sound_rows[i].text for i in before), *(rows[i].answer for i in after)], len(before))
    weights = stats.split_weights(len(before), len(after), seed=seed)
    yield _test_lengths("answers", weights, samples)
    statuses = [answer_status(text, labels) for text in samples.texts]
    for status in ("refused", "unparsable"):
        then, now = samples.shares([row_status == status for row_status in statuses])
        effect = f"{percent(then)} → {percent(now)} % ({points(now - then)} pp)"
        distances = stats.category_distances(weights, [str(row_status == status) for row_status in statuses])
        yield _test("answers", status, effect, distances)


def _nearest(vectors: Array, kernel: stats.Weights, samples: _Texts) -> Iterator[dict[str, Any]]:
    """Yield requests where production is densest relative to the test items, each with its nearest item."""
    later = kernel[samples.n_before :]
    witness = later[:, samples.n_before :].mean(axis=1) - later[:, : samples.n_before].mean(axis=1)
    for index in np.argsort(-witness, kind="stable")[:_NEAREST]:
        alike = vectors[: samples.n_before] @ vectors[samples.n_before + index]
        item, request = int(alike.argmax()), samples.texts[samples.n_before + index]
        yield {"request": request, "test_item": samples.texts[item], "similarity": float(alike[item])}


def _conclude(tests: Sequence[DriftTest], power: Mapping[float, float], n: int, measure: str) -> str:
    """Describe what moved and whether to measure the champion again; else what would have been detected."""
    kinds = ("requests", "answers")
    moved = {kind: [t.trait for t in tests if t.of == kind and t.has_moved] for kind in kinds}
    moved_text = "; ".join(f"{kind} moved: {', '.join(names)}" for kind, names in moved.items() if names)
    if moved["requests"]:
        step = "the test set stands for them no longer: add test items like them"
        items = "harness feedback rows --test-items MARKED.csv --out items.jsonl"
        return f"{moved_text}; {step} ({items}), then measure the champion again: {measure}"
    if moved_text:
        return f"{moved_text}, while requests did not: measure what is served again: {measure}"
    share = next((share for share, chance in power.items() if chance >= _POWER), None)
    if share is None or share > 0.5:
        doubt = f"among {pluralize(n, 'request')} even half that turn to one topic would be missed"
        return f"nothing is shown to have moved, but {doubt}: collect more before you rely on it"
    text = f"{percent(share)} % of requests that turn to one topic would be seen ({percent(_POWER)} % power)"
    return f"nothing is shown to have moved: {text}; no need to measure the champion again"


def drift_document(drift: Drift) -> ResultDocument:
    """Return the document of drift: a row per test, then the nearest rows and notes about the samples."""
    rows = [[f"{t.of}: {t.trait}", t.effect, p_value(t.p_adjusted)] for t in drift.tests]
    samples = (
        f"{pluralize(drift.n_requests, 'request')}, {count(drift.n_compared)} of them of different senders"
        f" and texts, against {pluralize(drift.n_test_items, 'test item')}; compared by {drift.embedding}"
    )
    power = ", ".join(f"{percent(share)} %: {chance:.2f}" for share, chance in drift.power.items())
    alarms = f"p by Holm over all; where nothing has moved, {percent(ALPHA)} % of such tables alarm"
    near = [
        f"a request of the kind that grew: {quote(row['request'])}: nearest test item "
        f"{quote(row['test_item'])} ({row['similarity']:.2f})"
        for row in drift.nearest
    ]
    sections = [
        Section("drift", columns=("what", "effect", "p"), rows=rows, notes=[alarms, samples, *drift.notes]),
        Section("nearest", notes=near),
        Section("power", notes=[f"power by the share of requests that turn to one topic: {power}"]),
    ]
    return ResultDocument("Requests and answers in production", sections, drift.sentence)


_RANDOM = "random"
_LEAST = 5  # thumbs up, and thumbs down, of each model, below which no interval is given


def compare_thumbs(rows: Sequence[FeedbackRow]) -> dict[str, Any]:
    """Compare the two models of each random assignment; remarks count the others' thumbs.

    A difference is the rate of the `new` model, the higher one, minus that of the `base`, in [−1, 1], with
    its 95 % interval, or None for the `reason` given. `unknown` thumbs have no sender: each is one person.
    """
    by_assignment: dict[str, list[FeedbackRow]] = {}
    for row in rows:
        by_assignment.setdefault(row.assignment, []).append(row)
    differences, remarks, not_random = list[dict[str, Any]](), list[str](), Counter[str]()
    for assignment, assigned in sorted(by_assignment.items()):
        models = Counter(row.model for row in assigned if row.thumb is not None)
        if assignment.lower().partition(":")[0] != _RANDOM:
            not_random.update(models)
        elif len(models) == 2 and all(models):
            differences.append(_compare(assignment, assigned, sorted(models)))
        elif models:
            names = ", ".join(sorted(name or "no name" for name in models))
            remarks.append(f"thumbs of {names}, assigned {assignment}: two models with a name are compared")
    if len(not_random) > 1:
        names = ", ".join(f"{name or 'no name'} ({count(n)})" for name, n in not_random.most_common())
        remarks.append(
            f"thumbs without random assignment, of {names}: the models may have met other requests, so their "
            "difference is not shown and decides nothing; next: log assignment: random where it was drawn"
        )
    return {"differences": differences, "remarks": remarks}


def _compare(assignment: str, rows: Sequence[FeedbackRow], models: Sequence[str]) -> dict[str, Any]:
    rated = [row for row in rows if row.thumb is not None]
    rates = list[dict[str, Any]]()
    for model in models:
        thumbs = [row.thumb for row in rows if row.model == model]
        n_up, n_thumbs = thumbs.count(True), len(thumbs) - thumbs.count(None)
        rates.append({"model": model, "up": n_up, "thumbs": n_thumbs, "answers": len(thumbs)})
    base, new = sorted(rates, key=lambda rate: rate["up"] / rate["thumbs"])
    values = [float(bool(row.thumb)) for row in rated]
    clusters = [row.sender or f"row {row.row_id}" for row in rated]
    mean = stats.clustered_contrast(values, [row.model == new["model"] for row in rated], clusters)
    low, high, reason = None, None, ""
    if min(min(rate["up"], rate["thumbs"] - rate["up"]) for rate in (base, new)) < _LEAST:
        reason = f"fewer than {_LEAST} thumbs up, or down, of one model"
    elif mean.se is None:
        reason = "too few senders"
    else:
        low, high = stats.t_interval(mean)
    arms = {"assignment": assignment, "base": base, "new": new, "delta": mean.mean, "low": low, "high": high}
    n_senders, n_unknown = len({row.sender for row in rated} - {""}), sum(not row.sender for row in rated)
    return {**arms, "reason": reason, "senders": n_senders, "unknown": n_unknown}


def describe_thumbs(compared: Mapping[str, Any], gains: Mapping[str, str]) -> list[str]:
    """Describe the differences, each with the offline gains of its models if they are known."""
    lines = []
    for pair in compared["differences"]:
        arms = (pair["new"], pair["base"])
        rates = " and ".join(
            f"{arm['model']} {percent(arm['up'] / arm['thumbs'])} % up of {count(arm['thumbs'])} thumbs, on "
            f"{percent(arm['thumbs'] / arm['answers'])} % of its answers"
            for arm in arms
        )
        lines.append(f"production, assigned {pair['assignment']}: {rates}")
        delta, by = points(pair["delta"], pair["low"], pair["high"]), pluralize(pair["senders"], "sender")
        if pair["unknown"]:
            by += f", {pluralize(pair['unknown'], 'thumb')} without a sender counted as one person each"
        why = f"; no interval: {pair['reason']}" if pair["reason"] else ""
        new, base = (arm["model"] for arm in arms)
        lines.append(f"  {new} − {base}: {delta} points ({by}){why}")
        gain_texts = [f"{model} {gains[model]}" for model in (new, base) if model in gains]
        lines += [f"  offline gain: {', '.join(gain_texts)}"] if gain_texts else []
    return [*lines, *compared["remarks"]]
