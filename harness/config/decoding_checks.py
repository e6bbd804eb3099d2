"""Validation of how answers are drawn: what a candidate and its target let a temperature change.

Invariant: a check looks at what could be read and never stops another check; what is accepted here can
be drawn, and chosen without a reference.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from harness import plugins
from harness.config.grids import Member
from harness.config.problems import Keys, Tree, mapping
from harness.config.rubrics import read_rubric
from harness.errors import Problem, UserError, did_you_mean
from harness.spec import BASE, JUDGE, MEAN_LOGPROB, Decoding, Recipe, Task, metric_name, metric_parts

_GREEDY = "remove decoding"


def check_decoding(
    recipe: Recipe, members: Mapping[str, Member], target: Task | None, tree: Tree, keys: Keys
) -> Iterator[Problem]:
    """Yield what forbids the decoding of a recipe, whose answers to the target it says."""
    if (decoding := recipe.sampling) is None:
        return
    where = tree.where((*keys, "decoding"))
    if recipe.answer == "rank":
        found = f"temperature {decoding.temperature:g} and answer: rank, which draws nothing"
        yield Problem(where, found, "answer: generate", _GREEDY)
    if target and target.kind != "generate":
        found = f"temperature {decoding.temperature:g} on a target of kind {target.kind}, which draws nothing"
        yield Problem(where, found, "a target of kind generate", _GREEDY)
    yield from _check_method(recipe, decoding, members, where)
    if decoding.reward_model:
        yield from _check_reward_model(decoding.reward_model, members, tree.where((*keys, "decoding", "by")))
    elif target and decoding.by and decoding.by != MEAN_LOGPROB:
        yield from _check_judge(decoding.by, target, tree.where((*keys, "decoding", "by")))


def _check_method(
    recipe: Recipe, decoding: Decoding, members: Mapping[str, Member], where: str
) -> Iterator[Problem]:
    """Refuse what answers with labels alone, and log-probabilities of an endpoint that gives none."""
    source = members.get(recipe.weights_of or "")
    made = mapping(source.recipe) if source else recipe.model_dump()
    name = made.get("method", BASE)
    if name not in plugins.names("methods"):
        return
    if plugins.method(name).makes not in plugins.LANGUAGE_MODELS:
        found = f"temperature {decoding.temperature:g} of the method {name}, which answers with a label"
        yield Problem(where, found, "a language model", _GREEDY)
    chat = mapping(made.get("params")).get("protocol") == "chat"
    if decoding.by == MEAN_LOGPROB and plugins.method(name).makes == "endpoint" and chat:
        found = "by: mean_logprob of an endpoint that is asked by chat, which gives none of them"
        yield Problem(where, found, "protocol: completions", "choose: majority, or by: judge:./FILE.yaml")


def _check_reward_model(by: str, members: Mapping[str, Member], where: str) -> Iterator[Problem]:
    """Refuse what makes no reward model; a metric among it, which a user without a reference has not."""
    expected = f"{MEAN_LOGPROB}, {JUDGE}./FILE.yaml, or a candidate that makes a reward model"
    makers = plugins.methods(makes="reward")
    if by not in members:
        found = f"the best by {by!r}, which is no candidate"
        if by in plugins.names("metrics"):
            found = f"the best by {by!r}, which needs the reference, and no user has it"
        able = {name for name, one in members.items() if mapping(one.recipe).get("method") in makers}
        yield Problem(where, found, expected, did_you_mean(by, able))
    elif (made_by := mapping(members[by].recipe).get("method", BASE)) not in makers:
        found = f"the best by {by}, whose method {made_by} makes no reward model"
        yield Problem(where, found, expected, f"a candidate with the method {' or '.join(makers)}")


def _check_judge(by: str, target: Task, where: str) -> Iterator[Problem]:
    """Refuse a judge that is none of the target's, that sees the reference, or that also decides."""
    name = metric_name(by)
    written = next((one for one in target.metrics if metric_name(one) == name), None)
    if written is None:
        yield Problem(where, f"{by}, which is none of the target's metrics", "one of them", "list it there")
        return
    if name == target.primary_metric:
        found = f"{name}, which chooses the best answer and is the primary metric"
        expected = "another one to decide: a judge that scores its own choice counts its errors as a gain"
        yield Problem(where, found, expected, "write primary: with another metric, or by: mean_logprob")
    try:
        sees = read_rubric(Path(metric_parts(written)[1])).needs_references
    except UserError:
        return  # said where the task's metrics are checked
    if sees:
        found = f"{name}, whose rubric shows the judge the reference"
        yield Problem(where, found, "what a user could choose by, who has none", "reference: false")
