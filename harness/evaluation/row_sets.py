"""The sets of rows that a run refers to: which items, asked how, under which identity.

Invariant: prompts are built only where rows are missing, because building them may mean building a
retriever first.
"""

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Literal, NamedTuple

from harness.data import SPLITS, Split
from harness.evaluation import Job, addressed, costs
from harness.evaluation.candidates import prompting_digest, step_of
from harness.evaluation.identity import identity
from harness.evaluation.session import Bench, Measured
from harness.models import openai_api
from harness.prompting import PromptingContext, compose
from harness.records import BLOCK, Example, RowsIdentity
from harness.spec import Recipe
from harness.training import Weights


class RowSet(NamedTuple):
    """Rows that a run refers to: which items, asked how, and the identity that names their folder.

    `ask` puts the prompts around the items. It is called only where rows are missing, because
    building prompts may mean building a retriever first.
    """

    measured: Measured
    split: Split
    answer: Literal["generate", "rank"]
    identity: RowsIdentity
    ask: Callable[[], tuple[Example, ...]]

    @property
    def name(self) -> str:
        """The key of these rows in a run: task and split."""
        return f"{self.measured.task.name}/{self.split}"

    @property
    def ids(self) -> list[str]:
        """Example ids, in the order in which they are asked."""
        return [e.id for e in self.measured.examples(self.split)]

    @property
    def n_blocks(self) -> int:
        """Blocks of `BLOCK` items in which they are asked, without building prompts."""
        return -(-len(self.ids) // BLOCK)

    def job(self) -> Job:
        """Return the items as the candidate is asked them."""
        m = self.measured
        return Job(m.task, m.role, self.split, self.ask(), m.metrics, self.answer, self.identity)


def target_sets(bench: Bench, recipe: Recipe, weights: Weights, seed: int) -> list[RowSet]:
    """List validation and test of the target, as this recipe asks them."""
    prompting = prompting_digest(bench, recipe, seed)
    target, answer = bench.target, recipe.answer

    step = cache(partial(step_of, bench, recipe, seed))

    def asked(split: Split) -> tuple[Example, ...]:
        return tuple(map(step(), target.examples(split)))

    return [
        RowSet(
            target,
            split,
            answer,
            identity(bench, weights, target, split, prompting, answer),
            partial(asked, split),
        )
        for split in SPLITS[1:]
    ]


def suite_sets(bench: Bench, weights: Weights) -> list[RowSet]:
    """List the capability tasks that can be asked: of a classifier none, of chat what is answered in text."""
    if weights.kind == "classifier":
        return []
    asked = (m for m in bench.suites if weights.kind != "chat" or openai_api.can_chat(m.task))
    return [suite_set(bench, weights, m) for m in asked]


def suite_set(bench: Bench, weights: Weights, m: Measured) -> RowSet:
    """Return the test items of one task that is asked as it is written, whoever answers."""
    named = identity(bench, weights, m, "test", "task", "generate")
    return RowSet(m, "test", "generate", named, partial(_asked, m))


def _asked(m: Measured) -> tuple[Example, ...]:
    """Put the task's own shots and system message around its items; lm-eval does that itself."""
    if m.task.lm_eval:
        return m.examples("test")
    if m.task.num_fewshot == 0:
        return tuple(addressed(e, m.task.system, None) for e in m.examples("test"))
    shots = {"few_shot": {"select": "fixed", "shots": m.task.num_fewshot}}
    step = compose(shots, PromptingContext(m.task, m.items.train, (), 0))
    return tuple(addressed(step(e), m.task.system, None) for e in m.examples("test"))


def total_work(sets: Iterable[RowSet]) -> costs.Work:
    """Add up the tokens that answering several sets takes."""
    return sum((work_of(rows.job()) for rows in sets), costs.Work())


def work_of(job: Job) -> costs.Work:
    """Estimate the tokens that answering a job takes."""
    ranked = job.answer == "rank" or job.task.kind == "choice"
    if job.task.lm_eval:
        return _work_of_lm_eval(job)
    return costs.reading(job.examples, ranked=ranked, max_new_tokens=job.task.max_new_tokens)


def _work_of_lm_eval(job: Job) -> costs.Work:
    """Estimate from the documents' texts, the shots counted as documents of the same length."""
    once = costs.reading(job.examples, ranked=False, max_new_tokens=job.task.max_new_tokens)
    generated = once.generated if job.task.kind == "generate" else 0
    return costs.Work(read=once.read * (1 + job.task.num_fewshot), generated=generated)
