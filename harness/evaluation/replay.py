"""General rows that are mixed into training: the base's own answers to general prompts, or rows of a file.

Invariant: what is drawn depends on the recipe, the training rows' number and the seed alone, and no
row asks what an evaluated item asks.

Source: Ibrahim et al. 2024 (arXiv:2403.08763) and Bethune et al. 2025 (arXiv:2502.06042) for the shares.
"""

import random
from collections.abc import Iterable, Sequence

from harness.data import TaskItems, folded, load_task, suite_leaks
from harness.data.general_prompts import general_prompts
from harness.errors import Problem, UserError
from harness.evaluation import costs
from harness.evaluation.session import Session
from harness.provenance.code_versions import versions_of
from harness.records import Example, SampleResult, digest, without_defaults
from harness.spec import Recipe, Replay, Task, TaskData

_NAME = "replay"
_LONGEST = 96  # tokens of an answer
_SPARE = 1.1  # some answers are left out: empty, refused, or without the end of a sentence
_ENDS = (".", "!", "?")


def n_replayed(session: Session, replay: Replay) -> int:
    """Count the rows that are mixed in: at least one."""
    return max(1, round(replay.share * len(session.target.items.train)))


def replay_digest(session: Session, source: Recipe, seed: int) -> str:
    """Digest what replayed rows depend on beside the base; empty for a recipe without replay."""
    if source.replay is None:
        return ""
    drawn = given(session, source.replay, seed) if source.replay.data else asked(session, source.replay)
    rows = [without_defaults(e) for e in drawn]
    return digest([versions_of("replay"), n_replayed(session, source.replay), _LONGEST, rows])


def given(session: Session, replay: Replay, seed: int) -> tuple[Example, ...]:
    """Draw rows of the user's file.

    Raises:
        UserError: the file cannot be read, or one of its rows is evaluated.
    """
    items = load_task(Task(name=_NAME, data=TaskData(train=replay.data)), seed)
    rows = sorted((*items.train, *items.validation), key=lambda e: e.id)
    if leaks := suite_leaks(rows, _evaluated(session)):
        raise UserError(leaks)
    n = min(n_replayed(session, replay), len(rows))
    return tuple(random.Random(f"{seed}/{_NAME}").sample(rows, n))


def replay_problems(session: Session, recipe: Recipe) -> Sequence[Problem]:
    """List what is wrong with the user's rows that a recipe replays."""
    if recipe.replay is None or recipe.replay.data is None:
        return ()
    try:
        given(session, recipe.replay, session.experiment.seeds[0])
    except UserError as error:
        return error.problems
    return ()


def asked(session: Session, replay: Replay) -> tuple[Example, ...]:
    """Return the general prompts that the base is asked, some more than are needed."""
    prompts = [
        Example(f"{_NAME}-{number}", ({"role": "user", "content": text},), cluster=f"{_NAME}-{number}")
        for number, text in enumerate(general_prompts())
    ]
    evaluated = [e for examples in _evaluated(session).values() for e in examples]
    taken = {folded(e.prompt) for e in evaluated}
    free = [e for e in prompts if folded(e.prompt) not in taken]
    return tuple(free[: round(_SPARE * n_replayed(session, replay)) + 1])


def answering_work(session: Session, replay: Replay) -> costs.Work:
    """Estimate what the base's answers take."""
    return costs.reading(asked(session, replay), ranked=False, max_new_tokens=_LONGEST)


def as_task(session: Session, prompts: Sequence[Example]) -> tuple[Task, TaskItems]:
    """Write the prompts down as a task, so that the answers are stored like any others."""
    chat = session.target.task.chat_template
    task = Task(
        name=_NAME,
        data=TaskData(),
        metrics=("no_refusal",),
        max_new_tokens=_LONGEST,
        chat_template=chat,
    )
    return task, TaskItems((), (), tuple(prompts), (), (), ())


def answered(prompts: Iterable[Example], rows: Iterable[SampleResult], n: int) -> tuple[Example, ...]:
    """Join the first n prompts with the base's answers, each up to its last whole sentence."""
    answers = {row.example_id: _whole(row) for row in rows}
    known = [(e, answers[e.id]) for e in prompts if answers.get(e.id)]
    return tuple(Example(e.id, e.messages, (text,), cluster=e.cluster) for e, text in known[:n])


def _whole(row: SampleResult) -> str:
    if row.status not in ("ok", "truncated"):
        return ""
    text = row.text.strip()
    return text if row.status == "ok" else text[: 1 + max(text.rfind(end) for end in _ENDS)]


def _evaluated(session: Session) -> dict[str, Sequence[Example]]:
    own = session.target.items
    known: dict[str, Sequence[Example]] = {session.target.task.name: (*own.test, *own.validation)}
    return known | {m.task.name: m.items.test for m in session.suites}
