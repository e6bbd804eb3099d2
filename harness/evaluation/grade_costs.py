"""Costs of grades, planned and paid, and prompts that are too long for a local judge.

Invariant: every requested grade counts, including those of anchors; without reported tokens a cost is
unknown, never zero. The planned number of grades is an upper bound, found without asking a judge.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from harness.errors import Problem
from harness.evaluation import costs
from harness.evaluation.costs import Budget, Words, price_usd, tokens_usd
from harness.evaluation.judges import LIMITS, GradingLimit, Judge, JudgedMetric, judge_messages, orders
from harness.evaluation.session import MeasuredTask, Session
from harness.formatting import count
from harness.models import encode_all
from harness.models.hub import chat_template, context_length, is_packed, load_tokenizer
from harness.prompting import Step, context_of
from harness.records import Example, Grade, PromptText
from harness.spec import TokenPrices
from harness.store import list_grades, read_rechecks


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
    read, written = sum(g.n_prompt_tokens for g in grades), sum(g.n_output_tokens for g in grades)
    return tokens_usd(prices, read, written)


def open_budget(judged: JudgedMetric, judge: Judge) -> Budget | None:
    """Return what is left of `max_cost` or the command's limit; None without a limit or price."""
    if judge.prices is None:
        return None
    spent, price = sum_paid_usd(judged), partial(tokens_usd, judge.prices)
    n = sum(len(list_paid_grades(judged, other)) for other in judged.judges if other.settings)
    most, limit = judged.rubric.max_cost, judged.limit
    since = None if spent is None or limit is None else spent - limit.before_usd
    if limit and (most is None or spent is None or since is None or limit.usd - since < most - spent):
        return Budget(limit.usd, price, since, n - limit.n_before, Words(paid="grades"))
    words = Words("max_cost", " in the rubric", "grades")
    return None if most is None else Budget(most, price, spent, n, words)


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
        counted = [grade for grade in list_grades(grades_store, judge.book) if grade.key in keys]
        return [*counted, *read_rechecks(grades_store, judge.book, Grade)[self._n_again[judge.book] :]]


def _total(costs: Iterable[float | None]) -> float | None:
    all_costs = list(costs)
    known = [cost for cost in all_costs if cost is not None]
    return sum(known) if len(known) == len(all_costs) else None


_CHARACTERS = 4  # assumed characters per token of an answer


class PlannedGrades(NamedTuple):
    """Upper bound of one judge's grades for a metric; tokens `read` and `generated`."""

    task: str
    metric: str
    judge: str
    grades: int
    read: int
    generated: int
    cost_usd: float | None


def plan_grades(session: Session, candidates: Sequence[str]) -> Iterator[PlannedGrades]:
    """Yield the planned grades of each judge, for the candidates' answers and the base's on suites."""
    named = [session.candidates[name] for name in candidates]
    target = session.target
    n_answers = sum(len(one.seeds) * (of.samples if (of := one.recipe.decoding) else 1) for one in named)
    examples = [*target.items.validation, *target.items.test]
    shown = any(one.rubric.passages for one in target.judged.values())
    steps = [session.prompting_step(one.recipe, one.seeds[0]) for one in named] if shown else []
    n_passages = max((passage_tokens(step, examples) for step in steps), default=0)
    yield from _plan_items(target, examples, n_answers, n_passages, n_checks=len(named))
    n_own = sum(len(one.seeds) for one in named if not one.method.keeps_base)
    for other in session.more_targets:
        items = [*other.items.validation, *other.items.test]
        yield from _plan_items(other, items, n_answers, n_checks=len(named))
    for suite in session.suites:
        yield from _plan_items(suite, suite.items.test, 1 + n_own, n_checks=1 + len(named))
    if judged := session.open_judge_of_pairs():  # it compares fine-tunes with the best untrained candidate
        n_tuned = sum(len(one.seeds) for one in named if one.method.tunes and not one.is_target_only)
        reply = "x" * _CHARACTERS * target.task.max_new_tokens  # an answer as long as the task allows
        pairs = [replace(example, references=(reply,)) for example in target.items.test]
        yield from _plan_items(target._replace(judged={judged.metric: judged}), pairs, n_tuned)


def passage_tokens(step: Step, examples: Sequence[Example]) -> int:
    """Estimate the tokens of the longest passages in the prompts that a step makes."""
    return max((costs.tokens(context_of(step(e).prompt, e.prompt)) for e in examples), default=0)


def _plan_items(
    measured: MeasuredTask,
    examples: Sequence[Example],
    n_answers: int,
    n_passages: int = 0,
    n_checks: int = 1,
) -> Iterator[PlannedGrades]:
    """Yield the grades of `n_answers` to each item; an endpoint grades its anchors again at each check."""
    for judged in measured.judged.values():
        n_each = n_answers * len(orders(judged.rubric))
        more = n_passages if judged.rubric.passages else 0
        # Of each prompt its texts, and an answer of the task's maximal length.
        (order, *_), answer = orders(judged.rubric), measured.task.max_new_tokens
        prompts = (judge_messages(judged.rubric, example, "", order) for example in examples)
        longest = [sum(costs.tokens(turn["content"]) for turn in turns) + answer + more for turns in prompts]
        for judge in judged.judges:
            n_anchors = min(judged.rubric.anchors, n_each * len(examples)) if judge.settings else 0
            again = n_checks * n_anchors
            grades = judge.attempts * n_each * len(examples) + again
            read = judge.attempts * n_each * sum(longest) + again * max(longest, default=0)
            written = grades * LIMITS.max_new_tokens
            cost = tokens_usd(judge.prices, read, written) if judge.prices else None
            yield PlannedGrades(measured.task.name, judged.metric, judge.name, grades, read, written, cost)


_STEP = "shorter criteria, fewer graded examples, a smaller max_new_tokens, or a judge with a longer context"


class ShortContext(NamedTuple):
    """A judge whose context is too short for some prompts; `problem` is set if it is for all of them."""

    text: str
    problem: Problem | None


def short_contexts(session: Session, names: Sequence[str]) -> list[ShortContext]:
    """List the judges whose context is too short for some prompts about the candidates' answers."""
    judged_items = [
        (judged, m, [*m.items.validation, *m.items.test], 1)
        for m in session.tasks
        for judged in m.judged.values()
    ]
    if pairs := session.open_judge_of_pairs():  # the reference is another candidate's answer
        items = [replace(example, references=("",)) for example in session.target.items.test]
        judged_items.append((pairs, session.target, items, 2))
    short = []
    for judged, measured, examples, n_answers in judged_items:
        for judge in judged.judges:
            source = session.candidates[judge.name].served_base if judge.absent else None
            source = judge.weights.source if judge.weights else source
            context = context_length(source) if source and not is_packed(source) else None
            if source is None or context is None or not examples:
                continue
            answers = n_answers * measured.task.max_new_tokens
            if judged.rubric.passages and measured.role == "target":
                named = (session.candidates[name] for name in names)
                steps = (session.prompting_step(one.recipe, one.seeds[0]) for one in named)
                answers += max((passage_tokens(step, examples) for step in steps), default=0)
            # Each item's prompt with an empty answer, followed by the longest grade.
            order, chat = orders(judged.rubric)[0], bool(chat_template(source))
            grade = ("" if chat else " ") + max(judged.rubric.grades, key=len)
            prompts = (judge_messages(judged.rubric, example, "", order) for example in examples)
            texts = [PromptText(turns, grade, chat) for turns in prompts]
            encoded = encode_all(load_tokenizer(source), texts)
            sizes = [len(e.context) + len(e.continuation) for e in encoded]
            n_long, n_sure = (sum(size + more > context for size in sizes) for more in (answers, 0))
            if not n_long:
                continue
            task = measured.task.name
            share = f"{count(n_long)} of {count(len(sizes))} items of {task}"
            sure = f", {count(n_sure)} of them with any answer" if n_sure else ""
            text = (
                f"{judged.metric}: the context of {judge.name} holds {count(context)} tokens; with the"
                f" longest answer that it may be shown, the prompts of {share} are longer (up to "
                f"{count(max(sizes) + answers)} tokens){sure}. Such an answer gets no grade; next: {_STEP}"
            )
            found = f"prompts of {count(min(sizes))} tokens and more for {task}, before any answer"
            expected = f"at most {count(context)}, the context of {judge.name}"
            problem = Problem(f"{judged.metric}: judge", found, expected, _STEP)
            short.append(ShortContext(text, problem if n_sure == len(sizes) else None))
    return short
