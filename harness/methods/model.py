"""A whole model that was made elsewhere: a merged adapter, a full fine-tune of axolotl, a model of the hub.

Invariant: it is judged against the experiment's base, never by identity, and generates and scores with the
tokenizer that lies beside it; nothing is copied, so its files are read where they are.
"""

from collections.abc import Iterator
from pathlib import Path

from harness.errors import Problem
from harness.methods._shared import model_problems
from harness.models.hub import ModelSource, has_tokenizer, is_packed
from harness.plugins import Method, MethodChecks
from harness.spec import Recipe, Spec
from harness.training import FitContext, Weights


class Params(Spec):
    """Nothing to set."""


def problems(recipe: Recipe, source: ModelSource, where: str) -> Iterator[Problem]:
    """Yield what forbids judging the model, found in the folder of the recipe's path, against this base."""
    folder = Path(recipe.path or "")
    if not has_tokenizer(folder):
        step = f"AutoTokenizer.from_pretrained({str(source.path)!r}).save_pretrained({str(folder)!r})"
        yield Problem(where, f"{folder} without a tokenizer", "the tokenizer next to the weights", step)
    if is_packed(source):
        return
    yield from model_problems(folder, source, where)


def fit(context: FitContext, params: Params) -> Weights:
    """Return the weights as they lie."""
    return Weights("base", context.source.weights_digest, None, source=context.source)


METHOD = Method(params=Params, fit=fit, makes="model", made_elsewhere=True, checks=MethodChecks(problems))
