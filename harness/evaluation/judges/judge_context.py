"""Context lengths of local judges compared with the prompts that a rubric and the items make.

Invariant: no model is loaded or asked. A prompt that is too long for any answer is counted with the judge's
own tokenizer; an answer counts with its maximal number of tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from harness.data import TaskItems
from harness.errors import Problem
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.judges import Judge, JudgedMetric
from harness.evaluation.judges.grade_costs import passage_tokens
from harness.evaluation.judges.judge_prompts import judge_messages, orders
from harness.evaluation.session import MeasuredTask, Session
from harness.formatting import count
from harness.models import encode_all
from harness.models.hub import ModelSource, context_length, has_chat_template, is_packed, load_tokenizer
from harness.records import Example, PromptText

STEP = (
    "shorter criteria, fewer graded examples, a smaller max_new_tokens, or a judge that reads longer prompts"
)


class ShortContext(NamedTuple):
    """A judge whose context is too short for some prompts of a task.

    Of `n_items` prompts `n_long` are too long with an answer of maximal length, and `n_sure` with any answer;
    `longest` and `shortest` are in tokens, the second without an answer.
    """

    task: str
    metric: str
    judge: str
    context: int
    n_items: int
    n_long: int
    n_sure: int
    longest: int
    shortest: int

    @property
    def problem(self) -> Problem | None:
        """Reason to stop: no answer to any item can be graded; None if some can."""
        if self.n_sure < self.n_items:
            return None
        found = f"prompts of {count(self.shortest)} tokens and more for {self.task}, before any answer"
        expected = f"at most {count(self.context)}, the context of {self.judge}"
        return Problem(f"{self.metric}: judge", found, expected, STEP)

    @property
    def text(self) -> str:
        """What happens to the answers, and what to do."""
        items = f"{count(self.n_long)} of {count(self.n_items)} items of {self.task}"
        sure = f", {count(self.n_sure)} of them with any answer" if self.n_sure else ""
        return (
            f"{self.metric}: the context of {self.judge} holds {count(self.context)} tokens; with the longest"
            f" answer that it may be shown, the prompts of {items} are longer (up to {count(self.longest)}"
            f" tokens){sure}. Such an answer gets no grade; next: {STEP}"
        )


def short_contexts(
    session: Session, names: Sequence[str], pairs: JudgedMetric | None = None
) -> list[ShortContext]:
    """List the judges whose context is too short for some prompts about the candidates' answers.

    `pairs` is the judge that compares two answers for a win rate, if there is one.
    """
    measured_by = [(judged, m, False) for m in session.tasks for judged in m.judged.values()]
    measured_by += [(pairs, session.target, True)] if pairs else []
    named = [session.candidates[name] for name in names]
    return [
        short
        for judged, measured, is_pair in measured_by
        for judge in judged.judges
        if (short := _short_context(session, named, measured, judged, judge, is_pair=is_pair))
    ]


def _short_context(
    session: Session,
    candidates: Sequence[ResolvedCandidate],
    measured: MeasuredTask,
    judged: JudgedMetric,
    judge: Judge,
    *,
    is_pair: bool,
) -> ShortContext | None:
    source = _source_of(session, judge)
    context = context_length(source) if source and not is_packed(source) else None
    examples = _examples(measured.items, is_pair=is_pair)
    if source is None or context is None or not examples:
        return None
    answers = (2 if is_pair else 1) * measured.task.max_new_tokens
    if judged.rubric.passages and measured.role == "target":
        answers += max((passage_tokens(session, c, examples) for c in candidates), default=0)
    texts = list(_prompts(judged, examples, chat=has_chat_template(source)))
    if max(map(_most_tokens, texts)) + answers <= context:
        return None
    sizes = [len(e.context) + len(e.continuation) for e in encode_all(load_tokenizer(source), texts)]
    n_long = sum(size + answers > context for size in sizes)
    n_sure = sum(size > context for size in sizes)
    named = (measured.task.name, judged.metric, judge.name, context)
    short = ShortContext(*named, len(sizes), n_long, n_sure, max(sizes) + answers, min(sizes))
    return short if n_long else None


def _source_of(session: Session, judge: Judge) -> ModelSource | None:
    """Return the model that reads the judge's prompts; None for an endpoint."""
    if judge.weights:
        return judge.weights.source
    return session.candidates[judge.name].served_base if judge.absent else None


def _examples(items: TaskItems, *, is_pair: bool) -> list[Example]:
    """List the judged items; in a pair the other answer is another candidate's."""
    if is_pair:
        return [replace(example, references=("",)) for example in items.test]
    return [*items.validation, *items.test]


def _prompts(judged: JudgedMetric, examples: Sequence[Example], *, chat: bool) -> Iterator[PromptText]:
    """Write each item's prompt with an empty answer, followed by the longest grade."""
    (order, *_), gap = orders(judged.rubric), "" if chat else " "
    grade = max(judged.rubric.grades, key=len)
    for example in examples:
        yield PromptText(judge_messages(judged.rubric, example, "", order), gap + grade, chat)


_TEMPLATE = 64  # tokens of a chat template around one turn, at most


def _most_tokens(prompt: PromptText) -> int:
    """Bound the tokens of a prompt by its bytes, which no tokenizer exceeds."""
    texts = [turn["content"] for turn in prompt.messages] + [prompt.continuation]
    return sum(len(text.encode()) + _TEMPLATE for text in texts)
