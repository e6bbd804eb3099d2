"""General rows mixed into training, so that less is forgotten: the base's own answers, or rows of a file.

Invariant: what is sampled depends on the parameters, the training rows' number and the seed alone, and no
row asks what an evaluated item asks.

Source: Ibrahim et al. 2024 (arXiv:2403.08763) and Bethune et al. 2025 (arXiv:2502.06042) for the shares.
"""

import random
from collections.abc import Callable, Iterable

from pydantic import Field

from harness.data import fold_text, load_task, suite_contamination
from harness.data.general_prompts import general_prompts
from harness.errors import CandidateFailed, UserError
from harness.records import Example, SampleResult
from harness.regularizers import MixContext, Mixture
from harness.spec import Spec, Task, TaskData

_NAME = "replay"
_LONGEST = 64  # tokens of an answer
_SPARE = 1.9  # some four in ten answers are not at their end by then, and a few are empty or refused
_ENDS = (".", "!", "?")


class Params(Spec):
    """`share` rows for each training row: general prompts with the base's answers, or rows of `data`."""

    share: float = Field(gt=0, le=1)
    data: str | None = None


def sample(context: MixContext, params: Params) -> Mixture:
    """Sample rows of the user's file, or general prompts that are not evaluated, more than are needed.

    Raises:
        UserError: the file cannot be read, or one of its rows is evaluated.
    """
    n = max(1, round(params.share * context.n_train))
    if params.data is None:
        return Mixture(n, _prompts(context)[: round(_SPARE * n) + 1], _LONGEST)
    items = load_task(Task(name=_NAME, data=TaskData(train=params.data)), context.seed)
    rows = sorted((*items.train, *items.validation), key=lambda e: e.id)
    if problems := suite_contamination(rows, context.evaluated):
        raise UserError(problems)
    n = min(n, len(rows))
    return Mixture(n, tuple(random.Random(f"{context.seed}/{_NAME}").sample(rows, n)))


def mix(mixture: Mixture, evaluate: Callable[[], Iterable[SampleResult]]) -> tuple[Example, ...]:
    """Return rows of a file as they are; join prompts with the base's answers, whole ones first.

    Where whole ones are too few, cut ones follow, each up to its last sentence.

    Raises:
        CandidateFailed: no answer of the base is whole.
    """
    if not mixture.max_new_tokens:
        return mixture.rows
    answers = {row.example_id: row for row in evaluate()}
    whole, cut = (
        [(e, _text(row)) for e in mixture.rows if (row := answers.get(e.id)) and row.status == status]
        for status in ("ok", "truncated")
    )
    known = [(e, text) for e, text in (*whole, *cut) if text]
    if not known:
        reason = f"the base gave no whole answer to any of {len(mixture.rows)} general prompts"
        raise CandidateFailed(reason, "regularize: {replay: {share: 0.05, data: rows-of-yours.jsonl}}")
    return tuple(Example(e.id, e.messages, (text,), cluster=e.cluster) for e, text in known[: mixture.n])


def _prompts(context: MixContext) -> tuple[Example, ...]:
    prompts = [
        Example(f"{_NAME}-{number}", ({"role": "user", "content": text},), cluster=f"{_NAME}-{number}")
        for number, text in enumerate(general_prompts())
    ]
    taken = {fold_text(e.prompt) for examples in context.evaluated.values() for e in examples}
    return tuple(e for e in prompts if fold_text(e.prompt) not in taken)


def _text(row: SampleResult) -> str:
    """Return an answer, what was cut up to its last sentence."""
    text = row.text.strip()
    return text if row.status == "ok" else text[: 1 + max(text.rfind(end) for end in _ENDS)]
