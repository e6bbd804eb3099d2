"""Which recipes may keep what a fine-tune forgot, cheapest first.

Invariant: pure; every rung changes one thing of the recipe, so what helped can be told.

Source: interpolation Wortsman et al. 2022 (arXiv:2109.01903); small learning rates Lin et al. 2025
(arXiv:2509.20758); replay Ibrahim et al. 2024 (arXiv:2403.08763); lower rank Biderman et al. 2024
(arXiv:2405.09673); half fine-tuning Hui et al. 2024 (arXiv:2404.18466), here by whole layers.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from harness import plugins
from harness.config.weight_sources import replays
from harness.spec import Recipe, Replay, RescuePolicy, Step

_BETWEEN = {"adapter": "scaled", "model": "interpolated"}  # what a method makes → the method between
_SLOWER, _SMALLER = 10, 4  # by what the learning rate and the rank are divided


class Trial(NamedTuple):
    """One rung: a recipe to try, the weights it borrows where the candidate borrows, what it changes."""

    step: Step
    name: str
    recipe: Recipe
    weights: dict[str, Recipe]
    trained: bool
    says: str

    @property
    def source(self) -> Recipe:
        """The recipe that makes the weights."""
        return next(iter(self.weights.values()), self.recipe)

    @property
    def recipes(self) -> dict[str, Recipe]:
        """Every candidate that has to be in the experiment for this one."""
        return {**self.weights, self.name: self.recipe}


class Ladder(NamedTuple):
    """The trials in order, and what is left out, each with its reason."""

    trials: tuple[Trial, ...]
    left_out: tuple[str, ...]


class _Rung(NamedTuple):
    step: Step
    mark: str
    source: Recipe
    trained: bool
    says: str


def ladder(name: str, recipe: Recipe, source: Recipe, policy: RescuePolicy, n_layers: int | None) -> Ladder:
    """List what to try for a candidate.

    `source` is the recipe of its weights with what a sweep chose; it is `recipe` itself unless that
    borrows. `n_layers` of the base is None where its configuration does not say.
    """
    rungs: list[_Rung] = []
    left_out: list[str] = []
    for step in policy.steps:
        found = _rungs(step, recipe.weights_of or name, source, policy, n_layers)
        if isinstance(found, str):
            left_out.append(f"{step}: {found}")
        else:
            rungs += found
    kept, n_trained = [], 0
    for rung in rungs:
        n_trained += rung.trained
        if rung.trained and n_trained > policy.max_trained:
            left_out.append(f"{rung.says}: rescue.max_trained is {policy.max_trained}")
        else:
            kept.append(_trial(name, recipe, rung))
    return Ladder(tuple(kept), tuple(left_out))


def _trial(name: str, recipe: Recipe, rung: _Rung) -> Trial:
    own = f"{name}+{rung.mark}"
    if recipe.weights_of is None:
        return Trial(rung.step, own, rung.source, {}, rung.trained, rung.says)
    weights = f"{recipe.weights_of}+{rung.mark}"
    borrowing = recipe.model_copy(update={"weights_of": weights})
    return Trial(rung.step, own, borrowing, {weights: rung.source}, rung.trained, rung.says)


def _rungs(
    step: Step, name: str, source: Recipe, policy: RescuePolicy, n_layers: int | None
) -> Sequence[_Rung] | str:
    """List the trials of a step, or say why there are none."""
    method = plugins.load("methods", source.method)
    if step == "scale":
        by = _BETWEEN.get(getattr(method, "MAKES", ""))
        return list(_scaled(name, source, policy, by)) if by else "there is nothing between it and the base"
    if "num_train_epochs" not in method.Params.model_fields:
        return "the weights were not trained here"
    params = method.Params(**source.params)
    if step == "learning_rate":
        rate = float(f"{params.learning_rate / _SLOWER:.6g}")  # 3e-3 / 10 is not 3e-4 in binary
        return [_changed(step, source, f"lr={rate:g}", f"learning rate {rate:g}", {"learning_rate": rate})]
    if step == "replay":
        return list(_replayed(source, policy)) if replays(method) else "it is not trained on rows"
    if step == "rank":
        return _ranked(source, params)
    return _halved(source, params, n_layers)


def _scaled(name: str, source: Recipe, policy: RescuePolicy, by: str) -> Iterator[_Rung]:
    asked = source.model_dump(include={"prompting", "answer", "system", "template", "serve_on"})
    for scale in policy.scales:
        made = Recipe(method=by, init_from=name, params={"scale": scale}, **asked)
        yield _Rung("scale", f"scale={scale:g}", made, False, f"at scale {scale:g}, no training")


def _changed(step: Step, source: Recipe, mark: str, says: str, params: dict[str, Any]) -> _Rung:
    made = source.model_copy(update={"params": {**source.params, **params}})
    return _Rung(step, mark, made, True, says)


def _replayed(source: Recipe, policy: RescuePolicy) -> Iterator[_Rung]:
    what = "rows of your file" if policy.replay else "the base's own answers"
    for share in policy.shares:
        made = source.model_copy(update={"replay": Replay(share=share, data=policy.replay)})
        said = f"{100 * share:g} % replay of {what}"
        yield _Rung("replay", f"replay={share:g}", made, True, said)


def _ranked(source: Recipe, params: Any) -> Sequence[_Rung] | str:
    if not hasattr(params, "r") or source.init_from:
        return "no new adapter is trained, so there is no rank to lower"
    if params.r == 1:
        return "the rank is 1 already"
    r = max(1, params.r // _SMALLER)
    alpha = {"lora_alpha": max(1, params.lora_alpha * r // params.r)} if params.lora_alpha else {}
    return [_changed("rank", source, f"r={r}", f"rank {r}", {"r": r, **alpha})]


def _halved(source: Recipe, params: Any, n_layers: int | None) -> Sequence[_Rung] | str:
    if not n_layers or n_layers < 2:
        return "the number of layers is not known"
    half = n_layers // 2
    said = f"the first {half} of {n_layers} layers left as they are"
    if getattr(params, "freeze", "") is None:
        return [_changed("half", source, "half", said, {"freeze": {"first": half}})]
    if getattr(params, "exclude_modules", "") is None and not source.init_from:
        return [_changed("half", source, "half", said, {"exclude_modules": first_layers(half)})]
    return "a part of the layers is left out already, or settled by another candidate"


def first_layers(n: int) -> str:
    """Return the expression of the modules in the first n layers: a path's first number is the layer."""
    return rf"\D*\.(?:{'|'.join(map(str, range(n)))})\..*"
