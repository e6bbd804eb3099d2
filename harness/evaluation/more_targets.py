"""More targets: what a candidate that was made for the target answers to other tasks, as it is.

Invariant: nothing is trained for them and nothing is chosen on them; shots and passages come from their own
files.
"""

from dataclasses import replace

from harness import plugins
from harness.evaluation.rows.row_sets import RowSet, target_sets
from harness.evaluation.session import MeasuredTask, Session
from harness.models import openai_api
from harness.spec import MEAN_LOGPROB, Recipe
from harness.training import Weights


def list_further_sets(session: Session, recipe: Recipe, weights: Weights, seed: int) -> list[RowSet]:
    """List test, and validation where there is some, of each further target that a recipe can answer."""
    able = (m for m in session.more_targets if _can_answer(recipe, weights, m))
    sets = [rows for m in able for rows in target_sets(replace(session, target=m), recipe, weights, seed)]
    return [rows for rows in sets if rows.ids]


def list_further_test_sets(session: Session, recipe: Recipe, weights: Weights, seed: int) -> list[RowSet]:
    """List the test items of each further target that a recipe can answer, by the names of the targets."""
    tests = (rows for rows in list_further_sets(session, recipe, weights, seed) if rows.split == "test")
    return sorted(tests, key=lambda rows: rows.name)


def _can_answer(recipe: Recipe, weights: Weights, measured: MeasuredTask) -> bool:
    """Tell whether a task has what a recipe's prompts, answers and draws need; of a classifier it has not."""
    # Labels that are ranked are the task's own, and an answer that a judge chooses is chosen by one of the
    # target's.
    task, decoding = measured.task, recipe.sampling
    needs = {need for name in recipe.prompting for need in _needs_of(name)}
    ranks = recipe.answer == "rank" and task.kind == "generate" and not task.labels
    by_judge = decoding is not None and decoding.by not in (None, MEAN_LOGPROB)
    in_chat = weights.kind != "chat" or openai_api.can_chat(task)
    prompts = all(task.data.source(need) for need in needs)
    return weights.is_language_model and prompts and in_chat and not (ranks or by_judge)


def _needs_of(name: str) -> tuple[str, ...]:
    """Name the files of a task that a prompting reads."""
    needs: tuple[str, ...] = getattr(plugins.load("prompting", name), "NEEDS", ())
    return needs
