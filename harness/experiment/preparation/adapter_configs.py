"""Configurations of candidates' adapters, as far as they are known before the weights are made.

Invariant: recipes and the files of adapters made elsewhere are read, no weights.
"""

from pathlib import Path
from typing import Any

from harness import plugins
from harness.evaluation.candidates import ResolvedCandidate
from harness.models.weight_files import CONFIG
from harness.records import read_object
from harness.spec import Recipe


def find_adapter_config(candidate: ResolvedCandidate) -> dict[str, Any]:
    """Return what is known of a candidate's adapter: not what its sweep decides.

    One that starts from another candidate's adapter has the shape of that.
    """
    while candidate.init:
        candidate = candidate.init
    known = read_recipe_config(candidate.source)
    return {name: value for name, value in known.items() if name not in candidate.source.tried}


def read_recipe_config(recipe: Recipe) -> dict[str, Any]:
    """Return what is known of a recipe's adapter: its parameters, or of one made elsewhere its file.

    Of a file that cannot be read nothing is: the method says what is wrong with it.
    """
    if not recipe.path:
        params: dict[str, Any] = plugins.method(recipe.method).params(**recipe.params).model_dump()
        return params
    return read_object(Path(recipe.path) / CONFIG)
