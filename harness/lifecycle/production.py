"""Feedback from production: drift of requests and answers, and thumbs of two models.

Stored requests are compared with the test items, answers with the champion's. One row of each sender, of each
cluster of test items and of each text counts. Without random assignment models met other requests, so no
difference of thumbs is estimated. Source: Gretton et al. 2012, A Kernel Two-Sample Test; Holm 1979.
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

ALPHA = 0.05  # chance that anything at all alarms where nothing has moved
MOST_ROWS = 1000  # of each sample
SENTENCE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_FEATURES = 50  # of words' parts, where no sentence model is there
_READ = 2000  # characters of a text that are embedded
_NEAREST = 3
_POWER = 0.8
_ROUNDING = 1e-7
_BEYOND = 0.05  # share of test items that are less like another than a request "beyond" is like any

Kind = Literal["requests", "answers"]
# Texts to vectors (n, k) of length 1, and what they are called.
Embed = Callable[[Sequence[str]], tuple[Array, str]]


@dataclass(frozen=True, slots=True)
class DriftTest:
    """One trait of requests or answers: its `effect` in words, its p, and that by Holm.

    It cannot move where all splits are equally far apart, such as no refusal in any, and is left out of Holm.
    """

    of: Kind
    trait: str
    effect: str
    p: float
    can_move: bool
    p_adjusted: float = 1.0

    @property
    def has_moved(self) -> bool:
        """Whether chance alone does not explain it."""
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
    """Two samples of texts, one after the other: `n_before` as measured, the rest from production."""

    texts: list[str]
    n_before: int

    def shares(self, holds: Sequence[bool]) -> tuple[float, float]:
        """Return the shares of both samples in which something holds."""
        return float(np.mean(holds[: self.n_before])), float(np.mean(holds[self.n_before :]))


def embed_parts_of_words(texts: Sequence[str]) -> tuple[Array, str]:
    """Return vectors (n, k) of length 1 by the letters of the texts, and what they are called."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.utils.extmath import randomized_svd

    parts = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4), sublinear_tf=True, max_features=20_000)
    found = parts.fit_transform([f"{text} ..." for text in texts])  # a text without words has one part
    left, values, _ = randomized_svd(found, min(_FEATURES, *found.shape), random_state=0)
    x = left * values  # (n, k)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1), "parts of words (TF-IDF of 3 and 4 letters)"


def open_embedding() -> Embed:
    """Open the sentence model if it lies in the cache and its package is installed, else parts of words."""
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
    """Compare samples of test items, answers to them and rows of production; `measure` measures anew."""
    before = _draw([(item.prompt, item.cluster) for item in items], seed)
    after = _draw([(row.request, row.sender) for row in rows], seed)
    n_before, n_after = len(before), len(after)
    if not before or not after:
        found = f"{pluralize(n_before, 'test item')} and {pluralize(n_after, 'request')}"
        raise UserError("monitor", found, "some of both", "add rows to the one that has none")
    texts = [*(items[i].prompt for i in before), *(rows[i].request for i in after)]
    for direction in (1, -1):  # without the template: the words in which all texts of a sample begin or end
        turned = [text[::direction] for text in texts]
        shared = _find_shared(turned[:n_before]), _find_shared(turned[n_before:])
        texts = [text.removeprefix(shared[0]).removeprefix(shared[1])[::direction] for text in turned]
    requests = _Texts(texts, n_before)
    weights = stats.split_weights(n_before, n_after, seed=seed)
    vectors, embedding = embed([text[:_READ] for text in requests.texts])
    kernel = stats.gaussian_kernel(vectors)
    answered, of_model = [row for row in rows if row.answer and answers], list[str]()
    models = Counter(row.model for row in answered)
    if len(models) > 1:
        (most, n), *others = models.most_common()
        named = ", ".join(name or "unnamed" for name, _ in others)
        answered = [row for row in answered if row.model == most]
        of_model = [f"answers are those of {most or 'the unnamed model'} ({count(n)} rows), without {named}"]
    plain = [*_test_requests(weights, kernel, requests), *_test_answers(answers, answered, labels, seed)]
    # By Holm over those that can move, which the pooled rows tell without their order.
    adjusted = iter(stats.holm([test.p for test in plain if test.can_move]))
    tests = tuple(replace(test, p_adjusted=next(adjusted)) if test.can_move else test for test in plain)
    known, alpha = kernel[:n_before, :n_before], ALPHA / max(sum(test.can_move for test in tests), 1)
    power = stats.topic_power(known, n_before, n_after, alpha, seed)
    if n_unknown := sum(not row.sender for row in rows):
        of_model.append(f"{pluralize(n_unknown, 'request')} without a sender: each counts, whoever wrote it")
    has_moved = any(test.has_moved for test in tests if test.of == "requests")
    return Drift(
        n_requests=len(rows),
        n_compared=n_after,
        n_test_items=n_before,
        embedding=embedding,
        tests=tests,
        nearest=tuple(_nearest(vectors, kernel, requests)) if has_moved else (),
        power=power,
        notes=(*notes, *of_model),
        sentence=_conclude(tests, power, n_after, measure),
    )


def _test(of: Kind, trait: str, effect: str, distances: Array) -> DriftTest:
    return DriftTest(of, trait, effect, stats.permutation_p(distances), bool(np.ptp(distances) > _ROUNDING))


def _draw(keys: Sequence[tuple[str, ...]], seed: int) -> list[int]:
    """Draw at most `MOST_ROWS` places, so that no two rows share a key: a text, a sender or a cluster."""
    places, seen, drawn = list(range(len(keys))), set[tuple[int, str]](), list[int]()
    random.Random(seed).shuffle(places)
    for place in places:
        own = {(kind, key) for kind, key in enumerate(keys[place]) if key}
        if len(drawn) < MOST_ROWS and not own & seen and keys[place][0].strip():
            seen |= own
            drawn.append(place)
    return drawn


def _find_shared(texts: Sequence[str]) -> str:
    """Return the whole words that all texts begin with; of one text, none."""
    shared = os.path.commonprefix([*texts]) if len(texts) > 1 else ""  # noqa: RUF071 (of letters)
    return shared[: max(map(shared.rfind, " \n\t")) + 1]


def _test_requests(weights: stats.Weights, kernel: stats.Weights, requests: _Texts) -> Iterator[DriftTest]:
    distances, n_before = stats.kernel_distances(weights, kernel), requests.n_before
    known = kernel[:, :n_before].copy()  # (n, n before)
    known[np.arange(n_before), np.arange(n_before)] = -1  # no item is its own neighbour
    nearest = known.max(axis=1)
    beyond = float((nearest[n_before:] < np.quantile(nearest[:n_before], _BEYOND)).mean())
    effect = (
        f"MMD {plain(distances[0] ** 0.5)}, by chance {plain(distances[1:].mean() ** 0.5)};"
        f" {percent(beyond)} % of requests beyond the test items, by chance {percent(_BEYOND)} %"
    )
    yield _test("requests", "texts", effect, distances)
    yield _test_lengths("requests", weights, requests)
    languages = [classify(text[:_READ]) for text in requests.texts]
    shares = {name: requests.shares([language == name for language in languages]) for name in set(languages)}
    largest = sorted(shares, key=lambda name: (-abs(shares[name][1] - shares[name][0]), name))[:3]
    effect = ", ".join(
        f"{name} {percent(shares[name][0])} → {percent(shares[name][1])} %" for name in largest
    )
    yield _test("requests", "language", effect, stats.category_distances(weights, languages))


def _test_lengths(about: Kind, weights: stats.Weights, of: _Texts) -> DriftTest:
    lengths = [len(text) for text in of.texts]
    middles = [count(median(part)) for part in (lengths[: of.n_before], lengths[of.n_before :])]
    effect = f"median {' → '.join(middles)} characters"
    return _test(about, "length", effect, stats.rank_distances(weights, lengths))


def _test_answers(
    answers: Sequence[SampleResult], rows: Sequence[FeedbackRow], labels: Sequence[str], seed: int
) -> Iterator[DriftTest]:
    sound = [row for row in answers if row.status not in ("error", "incomplete")]
    before = _draw([(row.prompt, row.cluster) for row in sound], seed)
    after = _draw([(row.request, row.sender) for row in rows], seed)
    if not before or not after:
        return
    of = _Texts([*(sound[i].text for i in before), *(rows[i].answer for i in after)], len(before))
    weights = stats.split_weights(len(before), len(after), seed=seed)
    yield _test_lengths("answers", weights, of)
    statuses = [answer_status(text, labels) for text in of.texts]
    for status in ("refused", "unparsable"):
        then, now = of.shares([found == status for found in statuses])
        effect = f"{percent(then)} → {percent(now)} % ({points(now - then)} pp)"
        distances = stats.category_distances(weights, [str(found == status) for found in statuses])
        yield _test("answers", status, effect, distances)


def _nearest(vectors: Array, kernel: stats.Weights, of: _Texts) -> Iterator[dict[str, Any]]:
    """Yield requests where production is densest beside the test items, each with the item nearest to it."""
    later = kernel[of.n_before :]
    witness = later[:, of.n_before :].mean(axis=1) - later[:, : of.n_before].mean(axis=1)
    for place in np.argsort(-witness, kind="stable")[:_NEAREST]:
        alike = vectors[: of.n_before] @ vectors[of.n_before + place]
        item, request = int(alike.argmax()), of.texts[of.n_before + place]
        yield {"request": request, "test_item": of.texts[item], "similarity": float(alike[item])}


def _conclude(tests: Sequence[DriftTest], power: Mapping[float, float], n: int, measure: str) -> str:
    """Say what moved and whether to measure the champion anew; where nothing did, what would have shown."""
    moved = {of: [t.trait for t in tests if t.of == of and t.has_moved] for of in ("requests", "answers")}
    said = "; ".join(f"{of} moved: {', '.join(names)}" for of, names in moved.items() if names)
    if moved["requests"]:
        step = "the test set stands for them no longer: add test items like them"
        items = "harness feedback rows --test-items MARKED.csv --out items.jsonl"
        return f"{said}; {step} ({items}), then measure the champion anew: {measure}"
    if said:
        return f"{said}, while requests did not: measure what is served anew: {measure}"
    share = next((share for share, seen in power.items() if seen >= _POWER), None)
    if share is None or share > 0.5:
        few = f"among {pluralize(n, 'request')} even half that turn to one topic would be missed"
        return f"nothing is shown to have moved, but {few}: collect more before you rely on it"
    seen = f"{percent(share)} % of requests that turn to one topic would be seen ({percent(_POWER)} % power)"
    return f"nothing is shown to have moved: {seen}; no need to measure the champion anew"


def summarize(found: Drift) -> tuple[str, ...]:
    """Say in lines what moved and what to do, without the tests that show nothing."""
    moved = (
        f"{t.of}, {t.trait}: {t.effect} (p by Holm {p_value(t.p_adjusted)})"
        for t in found.tests
        if t.has_moved
    )
    return (f"production, {pluralize(found.n_requests, 'request')}: {found.sentence}", *moved)


def drift_document(found: Drift) -> ResultDocument:
    """Lay the tests out: a row each, then the nearest rows and what is said of the samples."""
    rows = [[f"{t.of}: {t.trait}", t.effect, p_value(t.p_adjusted)] for t in found.tests]
    samples = (
        f"{pluralize(found.n_requests, 'request')}, {count(found.n_compared)} of them of different senders"
        f" and texts, against {pluralize(found.n_test_items, 'test item')}; compared by {found.embedding}"
    )
    power = ", ".join(f"{percent(share)} %: {seen:.2f}" for share, seen in found.power.items())
    alarms = f"p by Holm over all; where nothing has moved, {percent(ALPHA)} % of such tables alarm"
    near = [
        f"a request of the kind that grew: {quote(row['request'])}: nearest test item "
        f"{quote(row['test_item'])} ({row['similarity']:.2f})"
        for row in found.nearest
    ]
    sections = [
        Section("drift", columns=("what", "effect", "p"), rows=rows, notes=[alarms, samples, *found.notes]),
        Section("nearest", notes=near),
        Section("power", notes=[f"power by the share of requests that turn to one topic: {power}"]),
    ]
    return ResultDocument("Requests and answers in production", sections, found.sentence)


_RANDOM = "random"
_LEAST = 5  # thumbs up, and thumbs down, of each model, below which no interval is given


def compare_thumbs(rows: Sequence[FeedbackRow]) -> dict[str, Any]:
    """Compare the two models of each random assignment; remarks count the others' thumbs.

    A difference is that of the rates of the `new` model, the higher one, and the `base`, in [−1, 1], with its
    95 % interval; None where `reason` says why. The `unknown` thumbs have no sender: each is a person's.
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
            named = ", ".join(sorted(name or "no name" for name in models))
            remarks.append(f"thumbs of {named}, assigned {assignment}: two models with a name are compared")
    if len(not_random) > 1:
        named = ", ".join(f"{name or 'no name'} ({count(n)})" for name, n in not_random.most_common())
        remarks.append(
            f"thumbs without random assignment, of {named}: the models may have met other requests, so their "
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
    base, new = sorted(rates, key=lambda of: of["up"] / of["thumbs"])
    values = [float(bool(row.thumb)) for row in rated]
    clusters = [row.sender or f"row {row.row_id}" for row in rated]
    mean = stats.clustered_contrast(values, [row.model == new["model"] for row in rated], clusters)
    low, high, reason = None, None, ""
    if min(min(one["up"], one["thumbs"] - one["up"]) for one in (base, new)) < _LEAST:
        reason = f"fewer than {_LEAST} thumbs up, or down, of one model"
    elif mean.se is None:
        reason = "too few senders"
    else:
        low, high = stats.t_interval(mean)
    arms = {"assignment": assignment, "base": base, "new": new, "delta": mean.mean, "low": low, "high": high}
    n_senders, n_unknown = len({row.sender for row in rated} - {""}), sum(not row.sender for row in rated)
    return {**arms, "reason": reason, "senders": n_senders, "unknown": n_unknown}


def describe_thumbs(compared: Mapping[str, Any], gains: Mapping[str, str]) -> list[str]:
    """Write the differences as lines, each with the offline gains of its models, where they are known."""
    lines = []
    for found in compared["differences"]:
        arms = (found["new"], found["base"])
        rates = " and ".join(
            f"{one['model']} {percent(one['up'] / one['thumbs'])} % up of {count(one['thumbs'])} thumbs, on "
            f"{percent(one['thumbs'] / one['answers'])} % of its answers"
            for one in arms
        )
        lines.append(f"production, assigned {found['assignment']}: {rates}")
        shown, by = points(found["delta"], found["low"], found["high"]), pluralize(found["senders"], "sender")
        if found["unknown"]:
            by += f", {pluralize(found['unknown'], 'thumb')} without a sender counted as one person each"
        why = f"; no interval: {found['reason']}" if found["reason"] else ""
        new, base = (one["model"] for one in arms)
        lines.append(f"  {new} − {base}: {shown} points ({by}){why}")
        named = [f"{model} {gains[model]}" for model in (new, base) if model in gains]
        lines += [f"  offline gain: {', '.join(named)}"] if named else []
    return [*lines, *compared["remarks"]]
