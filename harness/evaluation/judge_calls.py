"""Calls of one judge, an endpoint or a local model, that grade answers; and the drift of an endpoint.

Invariant: each grade is stored as soon as it arrives. Equal questions and answers are graded once, or until a
grade is readable, as often as the rubric allows. An endpoint's text is parsed and never guessed. A judge that
grades its anchors differently grades nothing new. A judge's noise is measured: anchors are graded again as
soon as they are graded, and every check without drift adds to the noise, except those with moves that could
not have been told from drift. An interrupted check starts again, because the judge may have changed by then.
Source: G-Eval, Liu et al. 2023, arXiv 2303.16634, section 2; Fisher's exact test, one-sided
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from statistics import fmean
from threading import Lock
from typing import Any

import numpy as np
from scipy.special import softmax

from harness import formatting, store
from harness.config import Rubric
from harness.errors import CandidateFailed
from harness.evaluation import costs, judges
from harness.evaluation.costs import Budget, Words, price_usd, tokens_usd
from harness.evaluation.judges import GradingLimit, Judge, JudgedMetric, Order, UngradedAnswer
from harness.metrics import normalize
from harness.models import Candidate
from harness.models.openai_api import ChatCandidate, Server
from harness.records import Anchor, AnchorCheck, Grade, Message, Output, PromptText, digest
from harness.spec import TokenPrices
from harness.stats import Array
from harness.store import list_grades, read_rechecks

Keep = Callable[[Sequence[Grade]], None]
Say = Callable[[UngradedAnswer], Grade]


def ask_endpoint(
    books: set[str], refusals: dict[str, CandidateFailed], answers: Sequence[UngradedAnswer], keep: Keep
) -> None:
    """Let an endpoint grade answers, and its anchors again; record whether its book is checked or refused."""
    # Missing anchors are graded twice before any other answer, so that a judge that changes later is found
    # even if the grading is interrupted. They are chosen by digest, as if at random, from the answers that
    # are graded first.
    judged, judge = answers[0].judged, answers[0].judge
    stored_anchors = store.read_rechecks(judged.store, judge.book, Anchor)
    anchor_keys = {anchor.key for anchor in stored_anchors}
    if (n_lacking := judged.rubric.anchors - len(stored_anchors)) > 0:
        added = sorted((a for a in answers if a.key not in anchor_keys), key=lambda a: a.key)[:n_lacking]
        stored_anchors += [Anchor(a.key, a.task, a.example, a.answer, a.order, a.passages) for a in added]
        store.keep_anchors(judged.store, judge.book, stored_anchors)
        anchor_keys |= {anchor.key for anchor in stored_anchors}
    anchor_answers = [answer for answer in answers if answer.key in anchor_keys]
    assert judge.settings is not None
    server = Server(judge.settings)
    with closing(server.api):
        candidate = ChatCandidate(server, digest(judge.settings.name), logprobs=judged.rubric.logprobs)
        say = partial(_say, candidate, open_budget(judged, judge))
        if judge.book not in books:
            try:
                check_anchors(judged, judge, say)
            except CandidateFailed as error:
                refusals[judge.book] = error
                raise
        if anchor_answers:
            _ask_each(server, say, anchor_answers, keep)
            check_anchors(judged, judge, say, graded_now={answer.key for answer in anchor_answers})
        books.add(judge.book)
        if other_answers := [answer for answer in answers if answer.key not in anchor_keys]:
            _ask_each(server, say, other_answers, keep)


def _ask_each(server: Server, say: Say, answers: Sequence[UngradedAnswer], keep: Keep) -> None:
    """Ask about several answers at once; after a failure no request starts, but running ones are stored."""
    judged, judge, lock = answers[0].judged, answers[0].judge, Lock()
    failures: list[CandidateFailed] = []
    n_by_key = Counter(grade.key for grade in store.list_grades(judged.store, judge.book))

    def ask(answer: UngradedAnswer) -> None:
        try:
            for _ in range(n_by_key[answer.key], judge.attempts):
                if failures:
                    return
                grade = say(answer)
                with lock:
                    keep([grade])
                if grade.value is not None:
                    return
        except CandidateFailed as error:
            failures.append(error)

    server.each(ask, answers)
    if failures:
        raise failures[0]


def _say(candidate: ChatCandidate, budget: Budget | None, answer: UngradedAnswer) -> Grade:
    """Ask for one grade in words, at temperature 0; with log-probabilities the mean of all grades counts."""
    rubric, messages = answer.judged.rubric, _messages(answer)
    n_prompt = sum(costs.tokens(message["content"]) for message in messages)
    with budget.reserve(n_prompt, judges.LIMITS.max_new_tokens) if budget else nullcontext() as spend:
        (output,) = candidate.generate([candidate.encode(messages).context], judges.LIMITS)
        if spend is not None:
            cost = cost_usd([_grade(answer, output, "", None)], answer.judge.prices)
            spend(cost, output.n_prompt_tokens, output.n_output_tokens)
    if output.finish_reason == "error":
        return _grade(answer, output, "", None)
    grade = judges.read_grade(rubric, output.text)
    weights = token_weights(rubric, output.first_logprobs) if grade is not None else None
    if weights is not None:
        weights_text, mean = mean_grade(rubric, weights, answer.order)
        return _grade(answer, output, f"{output.text} ({weights_text})", mean)
    value = None if grade is None else judges.grade_value(rubric, grade, answer.order)
    return _grade(answer, output, output.text, value)


def _messages(answer: UngradedAnswer) -> list[Message]:
    rubric = answer.judged.rubric
    return judges.judge_messages(rubric, answer.example, answer.answer, answer.order, answer.passages)


def grade_by_likelihood(
    candidate: Candidate, answers: Sequence[UngradedAnswer], *, chat: bool
) -> Iterator[Grade]:
    """Yield the grades of a local model: the mean over all grades by their likelihood after the prompt."""
    start = time.perf_counter()
    encoded, gap = [], "" if chat else " "
    for answer in answers:  # the prompt with each grade after it, the worst first
        messages, grades = _messages(answer), answer.judged.rubric.grades
        encoded.append(candidate.encode_all([PromptText(messages, gap + grade, chat) for grade in grades]))
    sizes = [max(len(e.context) + len(e.continuation) for e in texts) for texts in encoded]
    fitting = [texts for texts, size in zip(encoded, sizes, strict=True) if size <= candidate.max_context]
    scores = iter(candidate.loglikelihood([(e.context, e.continuation) for texts in fitting for e in texts]))
    share = (time.perf_counter() - start) / len(answers)
    for answer, texts, size in zip(answers, encoded, sizes, strict=True):
        n_prompt = len(texts[0].context)
        if size > candidate.max_context:
            reason = f"a prompt of {size} tokens, the judge's context holds {candidate.max_context}"
            yield _grade(answer, Output("", "error", n_prompt_tokens=n_prompt, error=reason), "", None)
        else:
            weights = softmax([next(scores).logprob for _ in texts])
            output = Output("", n_prompt_tokens=n_prompt, compute_s=share)
            yield _grade(answer, output, *mean_grade(answer.judged.rubric, weights, answer.order))


def _grade(answer: UngradedAnswer, output: Output, judge_text: str, value: float | None) -> Grade:
    is_error = output.finish_reason == "error"
    key_fields = (answer.key, answer.task, answer.example.id, digest(answer.answer))
    status: Any = "error" if is_error else "unparsable" if value is None else "ok"
    figures = (output.n_prompt_tokens, output.n_output_tokens, output.compute_s)
    return Grade(*key_fields, status, value, judge_text, *figures, output.error, answer.order)


_LEAST = 0.5  # smallest probability of grades for the first token; with less the answer is not a grade


def token_weights(rubric: Rubric, tokens: Sequence[tuple[str, float]]) -> Array | None:
    """Return the probabilities of grades from their first tokens; None if they are below half in all."""
    weights = np.zeros(len(rubric.grades))
    for token, logprob in tokens:
        start = normalize(token)
        are_prefixed = [normalize(grade).startswith(start) for grade in rubric.grades] if start else []
        matches = [i for i, is_prefixed in enumerate(are_prefixed) if is_prefixed]
        if len(matches) == 1:
            weights[matches[0]] += np.exp(logprob)
    return np.asarray(weights / weights.sum()) if weights.sum() >= _LEAST else None


def mean_grade(rubric: Rubric, weights: Array, order: Order) -> tuple[str, float]:
    """Return the probability of each grade as a text, and the mean grade as a share of the scale."""
    text = ", ".join(f"{grade}: {p:.3f}" for grade, p in zip(rubric.grades, weights, strict=True))
    values = np.array([judges.grade_value(rubric, grade, order) for grade in rubric.grades])
    return text, float(weights @ values)


ALPHA = 0.01  # chance of an alarm about a judge that did not change, at each check
_NEXT = "the judge as it was, or another version: in the rubric, by which all answers are graded again"


def check_anchors(judged: JudgedMetric, judge: Judge, ask: Say, *, graded_now: Collection[str] = ()) -> None:
    """Let a judge grade its anchors again; CandidateFailed if more grades change than its noise explains.

    With `graded_now` only anchors with these keys are graded again, which measures today's noise. Otherwise
    the check is repeated if the noise is unknown, or measured on too few anchors to tell moves from drift.
    """
    grade_by_key = store.read_grades(judged.store, judge.book, judge.attempts)
    stored_anchors = store.read_rechecks(judged.store, judge.book, Anchor)
    anchors = [a for a in stored_anchors if a.key in grade_by_key and (not graded_now or a.key in graded_now)]
    if not anchors:
        return

    def ask_all() -> list[Grade]:
        grades = []
        for a in anchors:
            answer_fields = (a.task, a.example, a.answer, a.key, a.order, a.passages)
            grade = ask(UngradedAnswer(judged, judge, *answer_fields))
            store.keep_recheck(judged.store, judge.book, grade)
            if grade.status == "error":
                text = f"{judge.name} could not be asked again: {grade.error}"
                raise CandidateFailed(text, "a judge that answers")
            grades.append(grade)
        return grades

    before, now = [grade_by_key[anchor.key] for anchor in anchors], ask_all()
    earlier = store.read_rechecks(judged.store, judge.book, AnchorCheck)
    check = _check(judged.rubric, before, now, earlier)
    for _ in range(0 if graded_now else n_repeats(check, earlier, judged.rubric.anchors)):
        earlier.append(_check(judged.rubric, now, ask_all(), []))
        store.keep_recheck(judged.store, judge.book, earlier[-1])
    check = _check(judged.rubric, before, now, earlier)
    n = len(now)
    if graded_now or not check.n_moved or is_drift(n, n, earlier):
        store.keep_recheck(judged.store, judge.book, check)
    if check.drifted:
        means = f"{formatting.percent(check.mean_before)} → {formatting.percent(check.mean_now)} %"
        found = (
            f"{judge.name} grades otherwise than before: of {n} answers that it had graded {check.n_moved} "
            f"got another grade (mean {means}), so it was asked for no new one"
        )
        raise CandidateFailed(found, _NEXT)


def n_repeats(check: AnchorCheck, earlier: Sequence[AnchorCheck], n_max: int) -> int:
    """Return after how many repeats a judge without noise that moved all anchors would be detected."""
    n, n_min = len(check.grades), 0 if earlier else 1
    if not check.n_moved:
        return n_min
    calm = replace(check, n_moved=0, drifted=False)
    numbers = range(n_min, max(n_min, n_max // n) + 1)
    return next((k for k in numbers if is_drift(n, n, [*earlier, *[calm] * k])), n_min)


def _check(
    rubric: Rubric, before: Sequence[Grade], now: Sequence[Grade], earlier: Sequence[AnchorCheck]
) -> AnchorCheck:
    steps = [
        [None if g.value is None else round(g.value * (len(rubric.grades) - 1)) for g in grades]
        for grades in (before, now)
    ]
    n_moved = sum(old != new for old, new in zip(*steps, strict=True))
    # An unreadable grade counts as the worst.
    means = [fmean(grade.value or 0.0 for grade in grades) for grades in (before, now)]
    return AnchorCheck(tuple(now), n_moved, means[0], means[1], is_drift(n_moved, len(now), earlier))


def is_drift(n_moved: int, n: int, earlier: Sequence[AnchorCheck]) -> bool:
    """Tell whether more of `n` anchors moved than in earlier checks without drift; never at the first."""
    from scipy.stats import fisher_exact

    calm = [check for check in earlier if not check.drifted]
    if not calm:
        return False
    n_calm_moved, n_calm = sum(check.n_moved for check in calm), sum(len(check.grades) for check in calm)
    table = [[n_moved, n - n_moved], [n_calm_moved, n_calm - n_calm_moved]]
    return float(fisher_exact(table, alternative="greater").pvalue) < ALPHA


def list_paid_grades(judged: JudgedMetric, judge: Judge) -> list[Grade]:
    """List all grades that a judge was asked for, including those of its anchors."""
    return [*list_grades(judged.store, judge.book), *read_rechecks(judged.store, judge.book, Grade)]


def sum_paid_usd(judged: JudgedMetric) -> float | None:
    """Add up the costs of all endpoints of a rubric so far; None if unknown."""
    remote = [judge for judge in judged.judges if judge.settings]
    return _total(cost_usd(list_paid_grades(judged, judge), judge.prices) for judge in remote)


def cost_usd(grades: Sequence[Grade], prices: TokenPrices | None) -> float | None:
    """Add up the costs of grades by their tokens; None without prices, or if a server reported no tokens."""
    if prices is None or any(g.status != "error" and not g.n_prompt_tokens for g in grades):
        return None  # a grade without tokens: its server sent no `usage`
    n_read, n_written = sum(g.n_prompt_tokens for g in grades), sum(g.n_output_tokens for g in grades)
    return tokens_usd(prices, n_read, n_written)


def open_budget(judged: JudgedMetric, judge: Judge) -> Budget | None:
    """Return what is left of `max_cost` or the command's limit; None without a limit or price."""
    if judge.prices is None:
        return None
    spent, price = sum_paid_usd(judged), partial(tokens_usd, judge.prices)
    n = sum(len(list_paid_grades(judged, j)) for j in judged.judges if j.settings)
    max_cost, limit = judged.rubric.max_cost, judged.limit
    since = None if spent is None or limit is None else spent - limit.before_usd
    if limit and (max_cost is None or spent is None or since is None or limit.usd - since < max_cost - spent):
        return Budget(limit.usd, price, since, n - limit.n_before, Words(paid="grades"))
    words = Words("max_cost", " in the rubric", "grades")
    return None if max_cost is None else Budget(max_cost, price, spent, n, words)


class GradeAccount:
    """Account of the grades of some answers, and of anchors graded since it was opened."""

    def __init__(self, judged: JudgedMetric) -> None:
        self._judged, self._keys = judged, dict[str, set[str]]()
        books = (judge.book for judge in judged.judges)
        self._n_again = {book: len(read_rechecks(judged.store, book, Grade)) for book in books}

    def count(self, keys: Mapping[str, set[str]]) -> None:
        """Count the answers with these keys, by book."""
        for book, answer_keys in keys.items():
            self._keys.setdefault(book, set()).update(answer_keys)

    def cost_usd(self, device: str, device_hour_usd: float | None) -> float | None:
        """Add up the judges' costs so far, of a local one by its time; None if unknown."""
        local = [judge for judge in self._judged.judges if judge.weights]
        seconds = sum(grade.compute_s for judge in local for grade in self._grades(judge))
        remote = self._remote_usd()
        return None if remote is None else remote + price_usd(seconds, device, device_hour_usd)

    def limit(self, most_usd: float | None) -> GradingLimit | None:
        """Return the limit under which these grades cost at most `most_usd`; None for no limit."""
        if most_usd is None:
            return None
        remote = [judge for judge in self._judged.judges if judge.settings]
        n_others = sum(len(list_paid_grades(self._judged, j)) - len(self._grades(j)) for j in remote)
        before_usd = (sum_paid_usd(self._judged) or 0.0) - (self._remote_usd() or 0.0)
        return GradingLimit(most_usd, before_usd, n_others)

    def _remote_usd(self) -> float | None:
        remote = [judge for judge in self._judged.judges if judge.settings]
        return _total(cost_usd(self._grades(judge), judge.prices) for judge in remote)

    def _grades(self, judge: Judge) -> list[Grade]:
        grades_store, keys = self._judged.store, self._keys.get(judge.book, set())
        own_grades = [grade for grade in list_grades(grades_store, judge.book) if grade.key in keys]
        return [*own_grades, *read_rechecks(grades_store, judge.book, Grade)[self._n_again[judge.book] :]]


def _total(costs: Iterable[float | None]) -> float | None:
    all_costs = list(costs)
    known_costs = [cost for cost in all_costs if cost is not None]
    return sum(known_costs) if len(known_costs) == len(all_costs) else None
