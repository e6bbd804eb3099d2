"""A single answer of a candidate with its prompt as sent, and the prompts of stored answers."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

from harness import store
from harness.errors import CandidateFailed, HarnessError, UserError
from harness.evaluation import prompt_text
from harness.evaluation.candidates import refuse_silent
from harness.evaluation.row_sets import RowSet
from harness.evaluation.runner import open_weights
from harness.evaluation.session import Session
from harness.experiment.candidate_weights import find_stored_weights
from harness.experiment.run_candidate import row_sets
from harness.models import encode_all
from harness.models.hub import ModelSource, load_tokenizer
from harness.prompting import Step
from harness.records import Example, Message, Run, SampleResult, canonical_json, digest, has_closed_labels
from harness.report import ExperimentReport, ShownItem, ShownPrompt, excerpt
from harness.spec import Recipe
from harness.training import Weights

_QUESTION = "question"  # the id of a question that is not an item
_LONGEST = 6_000  # characters of one shown prompt
_ITEMS = 20  # items per task whose prompts are shown
_ROOM = 80_000  # characters of a task's shown prompts, counted as often as a page repeats them


class SentPrompt(NamedTuple):
    """A prompt as sent: its messages, the text of its tokens with special ones, and their digest."""

    messages: tuple[Message, ...]
    passages: tuple[str, ...]
    text: str
    n_tokens: int
    digest: str


class OneAnswer(NamedTuple):
    """An answer with its prompt; if it answers an item (`is_item`), it has references and scores."""

    prompt: SentPrompt
    row: SampleResult
    is_item: bool


def ask(session: Session, name: str, text: str = "", item: str = "") -> OneAnswer:
    """Let a candidate answer a text as a question of the target, or an item of any task by its id."""
    candidate, seed = session.candidates[name], session.first_seed
    refuse_silent(candidate)
    weights = None if candidate.searches_prompts else find_stored_weights(session, candidate, seed)
    if weights is None:
        missing = "prompt, which validation chooses" if candidate.searches_prompts else "stored weights"
        step = f"harness compare --candidates {name}, which makes them"
        raise UserError(f"candidate {name}", f"no {missing}", "what an answer needs", step)
    sets = row_sets(session, candidate, weights, seed)
    if item:  # its id, or TASK/ID if several tasks have that id
        pool = [(rows, example) for rows in sets for example in rows.measured.examples(rows.split)]
        names = [f"{rows.measured.task.name}/{example.id}" for rows, example in pool]
        places = [i for i, name in enumerate(names) if item in (name, pool[i][1].id)]
        if len(places) != 1:
            first = ", ".join(names[i] for i in places[:4])
            step = f"name one of {first}" if places else f"such as --item {pool[0][1].id if pool else 'ID'}"
            raise UserError(f"--item {item}", f"{len(places)} such items", "one of an evaluated task", step)
        rows, example = pool[places[0]]
    else:
        items = session.target.items.test
        choices = items[0].choices if has_closed_labels(items) else ()
        if candidate.recipe.answer == "rank" and not choices:
            found, step = "a text, and an answer that is chosen among each item's choices", "--item ID"
            raise UserError(f"candidate {name}", found, "an item with its choices", step)
        message: Message = {"role": "user", "content": text}
        rows, example = sets[1], Example(_QUESTION, (message,), choices[:1], choices)
    prompted = _prompting(session, candidate.recipe, seed, rows)(example)
    job = rows.ungraded.job(examples=(prompted,))
    if not item:
        job = replace(job, metrics={})
    with open_weights(session, weights) as model:
        (row,) = rows.measured.evaluate(model, job, 0, rows.measured.encode(model, job, 0))
    (prompt,) = _sent(session.source, weights, rows, [prompted])
    return OneAnswer(prompt, row, bool(item))


def find_sent_prompts(session: Session, run: Run, task: str, items: Collection[str]) -> dict[str, SentPrompt]:
    """Rebuild the prompts of stored answers from the current files; HarnessError if that is impossible."""
    recipe = Recipe.model_validate(run.recipe)
    if recipe.weights_of and recipe.weights_of not in session.candidates:
        raise CandidateFailed(f"it takes the weights of {recipe.weights_of}, which is not a candidate now")
    candidate = session.resolve(run.candidate, recipe)
    weights = find_stored_weights(session, candidate, run.seed)
    if weights is None:
        raise CandidateFailed("its weights are not stored here, or its recipe is another one now")
    sets = row_sets(session, candidate, weights, run.seed)
    rows = next((row_set for row_set in sets if row_set.name == f"{task}/test"), None)
    if rows is None:
        raise CandidateFailed(f"{task} is not a task of the experiment now")
    if rows.measured.task.lm_eval:
        raise CandidateFailed("lm-eval puts its prompt together; only its question is stored")
    examples = {e.id: e for e in rows.measured.examples("test") if e.id in items}
    if absent := [item for item in items if item not in examples]:
        raise CandidateFailed(f"{task} has no item {absent[0]} now")
    step = _prompting(session, recipe, run.seed, rows)
    prompts = _sent(session.source, weights, rows, [step(examples[item]) for item in items])
    return dict(zip(items, prompts, strict=True))


def add_prompts(
    session: Session, report: ExperimentReport, earlier: ExperimentReport | None = None
) -> ExperimentReport:
    """Add the prompts as sent to the items that a report shows, as far as files and room allow.

    Prompts in an `earlier` report of the same runs are reused, because making one loads a tokenizer.
    """
    if earlier and [f.run_id for f in earlier.facts] == [f.run_id for f in report.facts]:
        old_prompts = {(s.task, s.item): s.prompts for s in earlier.answers}
        if any(old_prompts.values()) and {(s.task, s.item) for s in report.answers} == old_prompts.keys():
            answers = (replace(s, prompts=old_prompts[s.task, s.item]) for s in report.answers)
            return replace(report, answers=tuple(answers))
    runs = store.read_written_runs(session.store, [f.run_id for f in report.facts])
    by_label = {f.label: runs[f.run_id] for f in report.facts if f.run_id in runs}
    with_prompts: list[ShownItem] = []
    for task, of_task in groupby(report.answers, key=lambda s: s.task):
        items = list(of_task)
        ids, key = [s.item for s in items[:_ITEMS]], f"{task}/test"
        prompt_by_key: dict[tuple[str, str], ShownPrompt] = {}
        columns_of: dict[tuple[str, str], list[str]] = {}
        for column in items[0].answers:
            of_label = (r for label, r in by_label.items() if f"{column}, ".startswith(f"{label}, "))
            if run := next(of_label, None):
                rows_digest = run.rows.get(key, "")
            else:  # the base, whose rows are found through a run on it
                of_base = (store.digest_of_base(session.store, run, key) for run in by_label.values())
                rows_digest = next(filter(None, of_base), "")
            rows = store.read_samples(session.store, rows_digest, ids) if rows_digest else {}
            lacking = [item for item, row in rows.items() if (item, row.prompt_digest) not in prompt_by_key]
            with suppress(HarnessError, ImportError, OSError, ValueError, LookupError):
                sent = find_sent_prompts(session, run, task, lacking) if run and lacking else {}
                for item, full in sent.items():
                    prompt = ShownPrompt((), excerpt(full.text, _LONGEST), full.n_tokens, False, full.digest)
                    prompt_by_key[item, rows[item].prompt_digest] = prompt
            for item, row in rows.items():
                columns_of.setdefault((item, row.prompt_digest), []).append(column)
        prompts, room = {item: list[ShownPrompt]() for item in ids}, _ROOM
        in_order = sorted(columns_of.items(), key=lambda entry: ids.index(entry[0][0]))
        for (item, sent_digest), columns in in_order:
            if shown := prompt_by_key.get((item, sent_digest)):
                room -= len(shown.text) * len(columns)
                if room >= 0:
                    was_sent = shown.digest == sent_digest
                    prompts[item].append(shown._replace(columns=tuple(columns), was_sent=was_sent))
        with_prompts += [replace(s, prompts=tuple(prompts.get(s.item, ()))) for s in items]
    return replace(report, answers=tuple(with_prompts))


def _prompting(session: Session, recipe: Recipe, seed: int, rows: RowSet) -> Step:
    if rows.measured.role != "target":
        return rows.step()
    return replace(session, target=rows.measured, dry_run=False).prompting_step(recipe, seed)


# Most candidates and tasks share one base; its digests are part of the cache key.
_load_tokenizer_once = lru_cache(maxsize=1)(load_tokenizer)


def _sent(base: ModelSource, weights: Weights, rows: RowSet, examples: Sequence[Example]) -> list[SentPrompt]:
    if weights.is_language_model and weights.kind != "chat":
        tokenizer = _load_tokenizer_once(weights.source or base)
        prompts = [prompt_text(rows.measured.task, example) for example in examples]
        tokens = [encoded.context for encoded in encode_all(tokenizer, prompts)]
        texts = [str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)) for ids in tokens]
    else:
        texts = [canonical_json(list(e.messages)) if weights.kind == "chat" else e.prompt for e in examples]
        tokens = [tuple(text.encode()) for text in texts]
    return [
        SentPrompt(example.messages, example.passages, text, len(ids), digest(ids))
        for example, text, ids in zip(examples, texts, tokens, strict=True)
    ]
