"""Proposal of candidates: every alternative that a decision asks for on such a task, the cheap ones first."""

from collections.abc import Sequence
from typing import Any

from harness import plugins
from harness.data import TaskItems
from harness.evaluation import costs
from harness.experiment.scaffold.method_choice import MethodChoice, Resources, choose_method, fit_batches
from harness.experiment.scaffold.recognition import Kind
from harness.experiment.scaffold.task_proposal import count_tokens
from harness.models.hub import ModelSource, context_length, is_packed
from harness.records import Example
from harness.spec import Task

MOST_SHOTS, LONGEST_SHOTS = 8, 3000  # the second in characters, all shots together
LONGEST_ROW = 4096  # tokens of a row to train on; a longer one is left out


def propose_candidates(
    kind: Kind, items: TaskItems, task: Task, base: ModelSource | None, here: Resources
) -> tuple[MethodChoice, dict[str, dict[str, Any]]]:
    """List every alternative that a decision asks for on such a task, the cheap ones first."""
    n_shots = _count_shots(items.train, _find_room(items, task, base))
    fixed, nearest = ({"few_shot": {"select": select, "shots": n_shots}} for select in ("fixed", "knn"))
    size = base.n_parameters if base else None
    is_whole = all(pair.references and pair.rejected for pair in items.pairs)
    ways = {bool(pair.references) for pair in items.pairs}
    pairs, thumbs = bool(task.data.pairs) and is_whole, not is_whole and len(ways) > 1
    situation = plugins.Situation(kind == "labels", pairs, size, thumbs=thumbs)
    proposed = _methods(situation)
    on_rows = {name: recipe for name, recipe in proposed.items() if plugins.method(name).trains_on_rows}
    untrained = {name: recipe for name, recipe in proposed.items() if not plugins.method(name).trains}
    longest = _find_longest(items.train, base)
    on_rows = {name: _make_room(name, recipe, longest) for name, recipe in on_rows.items()}
    on_rows = fit_batches(on_rows, base, here, longest)
    choice = choose_method(on_rows, base, here, longest)
    makes_adapter = plugins.method(choice.name).makes_adapter
    beside = _methods(situation._replace(adapter=choice.name if makes_adapter else ""))
    others = {name: recipe for name, recipe in beside.items() if name not in on_rows}
    found: dict[str, dict[str, Any]] = {"prompt": {"prompting": "zero_shot"}}
    if n_shots:
        found |= {"fixed": {"prompting": fixed}, "knn": {"prompting": nearest}}
    if kind == "labels":
        found["ranked"] = {"prompting": nearest if n_shots else "zero_shot", "answer": "rank"}
    found |= untrained
    rag = {"rag": {"retriever": "bm25", "top_k": 2}}
    if task.data.documents:
        found["rag"] = {"prompting": rag}
    found[choice.name] = on_rows[choice.name]
    if task.data.documents:
        found["hybrid"] = {"weights_of": choice.name, "prompting": rag}
    return choice, found | others


def _find_longest(train: Sequence[Example], base: ModelSource | None) -> int:
    """Return the tokens of the longest row, by the base's tokenizer where it is here, else by an estimate."""
    if base is None or not (base.path / "tokenizer.json").is_file():
        return max(costs.training([e], 1).trained for e in train)
    texts = ["\n".join([*(m["content"] for m in e.messages), e.references[0]]) for e in train]
    turns = max(len(e.messages) for e in train) + 1
    return max(count_tokens(texts, base)) + costs.CHAT_TOKENS * turns


def _make_room(name: str, recipe: dict[str, Any], longest: int) -> dict[str, Any]:
    """Let a training take the longest row, by an estimate with a quarter to spare, where it would drop it."""
    params = recipe.get("params", {})
    room = min(-(-longest * 5 // 4 // 256) * 256, LONGEST_ROW)
    if room <= plugins.method(name).params(**params).max_length:
        return recipe
    return {**recipe, "params": {**params, "max_length": room}}


def _find_room(items: TaskItems, task: Task, base: ModelSource | None) -> int | None:
    """Estimate the tokens that the longest prompt and answer leave of a base's context; None: unknown."""
    context = context_length(base) if base and not is_packed(base) else None
    if context is None:
        return None
    examples = [*items.train, *items.validation, *items.test]
    longest = max(costs.answering_work([e], ranked=False, max_new_tokens=0).read for e in examples)
    return context - task.max_new_tokens - longest


def _count_shots(train: Sequence[Example], room: int | None) -> int:
    """Count the shots, up to eight, that fit a prompt of some thousand tokens and a base's context."""
    lengths = sorted(len(e.prompt) + max(map(len, e.references), default=0) for e in train)
    wanted = max(1, min(MOST_SHOTS, LONGEST_SHOTS // max(_most(lengths), 1)))
    if room is None:
        return wanted
    tokens = sorted(costs.training([e], 1).trained for e in train)
    spared = room * 4 // 5  # for it is an estimate
    return min(wanted, max(0, spared // max(_most(tokens), 1)))


def _most(lengths: Sequence[int]) -> int:
    """Return the length that nine of ten do not exceed, of sorted ones."""
    return lengths[int(0.9 * (len(lengths) - 1))]


def _methods(situation: plugins.Situation) -> dict[str, dict[str, Any]]:
    """Return a recipe of each method that proposes itself, by its name."""
    proposals = {name: plugins.method(name).proposal(situation) for name in plugins.names("methods")}
    return {name: {"method": name, **recipe} for name, recipe in proposals.items() if recipe is not None}
