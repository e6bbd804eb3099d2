"""One answer of a candidate with the prompt that it is sent, and the prompt of an answer that is stored.

Invariant: prompts, answers and scores are made by what evaluates; nothing is trained and nothing is stored.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from harness.errors import CandidateFailed, Problem, UserError
from harness.evaluation import prompt_text
from harness.evaluation.candidates import ResolvedCandidate, refuse_silent
from harness.evaluation.rows.row_sets import RowSet, prompting_step
from harness.evaluation.runner import open_weights
from harness.evaluation.session import Session
from harness.experiment.runs.run_candidate import row_sets
from harness.experiment.weights.candidate_weights import find_stored_weights
from harness.models import encode_all
from harness.models.hub import load_tokenizer
from harness.records import Example, Message, Run, SampleResult, canonical_json, digest, has_closed_labels
from harness.spec import Recipe
from harness.training import Weights

_QUESTION = "question"  # the id of one that is no item


class SentPrompt(NamedTuple):
    """A prompt as a candidate is sent it: its messages, and the text of its tokens, special ones among them.

    `digest` is that of the tokens, by which a stored answer tells whether it was asked so.
    """

    messages: tuple[Message, ...]
    passages: tuple[str, ...]
    text: str
    n_tokens: int
    digest: str


class OneAnswer(NamedTuple):
    """An answer with its prompt; one to an item (`is_item`) has references and scores."""

    prompt: SentPrompt
    row: SampleResult
    is_item: bool


def ask(session: Session, name: str, text: str = "", item: str = "") -> OneAnswer:
    """Let a candidate answer a text as a question of the target, or an item of any task by its id.

    Raises:
        UserError: its weights are not stored, or there is no such item.
    """
    candidate, seed = session.candidates[name], session.first_seed
    refuse_silent(candidate)
    weights = None if candidate.searches_prompts else find_stored_weights(session, candidate, seed)
    if weights is None:
        what = "prompt, which validation chooses" if candidate.searches_prompts else "stored weights"
        step = f"harness compare --candidates {name}, which makes them"
        raise UserError(Problem(f"candidate {name}", f"no {what}", "what an answer needs", step))
    sets = row_sets(session, candidate, weights, seed)
    rows, example = _find_item(sets, item) if item else (sets[1], _question(session, candidate, text))
    prompted = _prompt(session, candidate.recipe, seed, rows, example)
    job = rows.answers.job(examples=(prompted,))
    if not item:
        job = replace(job, metrics={})
    with open_weights(session, weights) as model:
        (row,) = rows.measured.evaluate(model, job, 0, rows.measured.encode(model, job, 0))
    return OneAnswer(_sent(session, weights, rows, prompted), row, bool(item))


def find_sent_prompt(session: Session, run: Run, task: str, item: str) -> SentPrompt:
    """Make the prompt of a stored answer again from the files as they are now.

    Raises:
        HarnessError: the run's weights, the task or the item are not there now.
    """
    recipe = Recipe.model_validate(run.recipe)
    if recipe.weights_of and recipe.weights_of not in session.candidates:
        raise CandidateFailed(f"{recipe.weights_of}, whose weights it takes, is no candidate now")
    candidate = session.resolve(run.candidate, recipe)
    weights = find_stored_weights(session, candidate, run.seed)
    if weights is None:
        raise CandidateFailed("its weights are not stored here, or are written otherwise now")
    sets = [one for one in row_sets(session, candidate, weights, run.seed) if one.name == f"{task}/test"]
    rows, example = _find_item(sets, item)
    if rows.measured.task.lm_eval:
        raise CandidateFailed("lm-eval puts its prompt together; stored is its question")
    return _sent(session, weights, rows, _prompt(session, recipe, run.seed, rows, example))


def _find_item(sets: Sequence[RowSet], wanted: str) -> tuple[RowSet, Example]:
    """Find an item by its id, or by TASK/ID where several tasks have one of that id."""
    found = [
        (rows, example)
        for rows in sets
        for example in rows.measured.examples(rows.split)
        if wanted in (example.id, f"{rows.measured.task.name}/{example.id}")
    ]
    if len(found) == 1:
        return found[0]
    named = ", ".join(f"{rows.measured.task.name}/{example.id}" for rows, example in found[:4])
    first = next((example.id for rows in sets for example in rows.measured.examples(rows.split)), "ID")
    step = f"name one of {named}" if found else f"such as --item {first}"
    raise UserError(Problem(f"--item {wanted}", f"{len(found)} such items", "one of an evaluated task", step))


def _question(session: Session, candidate: ResolvedCandidate, text: str) -> Example:
    """Make a question of a text; one that is answered by a rank has the target's labels as choices."""
    items = session.target.items.test
    choices = items[0].choices if has_closed_labels(items) else ()
    if candidate.recipe.answer == "rank" and not choices:
        found, step = "a text, and an answer that is chosen among each item's choices", "--item ID"
        raise UserError(Problem(f"candidate {candidate.name}", found, "an item with its choices", step))
    return Example(_QUESTION, ({"role": "user", "content": text},), choices[:1], choices)


def _prompt(session: Session, recipe: Recipe, seed: int, rows: RowSet, example: Example) -> Example:
    """Put the prompt around an item; retrieval and shots are real, also in a session that loads no base."""
    if rows.measured.role != "target":
        return rows.step()(example)
    able = replace(session, target=rows.measured, dry_run=False)
    return prompting_step(able, recipe, seed)(example)


def _sent(session: Session, weights: Weights, rows: RowSet, example: Example) -> SentPrompt:
    if not weights.is_language_model:
        text = example.prompt
        ids = tuple(text.encode())
    elif weights.kind == "chat":
        text = canonical_json(list(example.messages))
        ids = tuple(text.encode())
    else:
        tokenizer = load_tokenizer(weights.source or session.source)
        ids = encode_all(tokenizer, [prompt_text(rows.measured.task, example)])[0].context
        text = str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
    return SentPrompt(example.messages, example.passages, text, len(ids), digest(ids))
