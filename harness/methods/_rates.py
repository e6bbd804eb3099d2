"""Learning rates that a method proposes to try, by the size of the base.

Invariant: each rate lies within a range of `config/recipe_ranges.toml` that is for such a base, where there
is one, so nothing that `harness init` proposes is remarked on.
"""

from math import inf
from typing import Any

_BILLION = 1e9
_USUAL = 7e9  # parameters of a base whose size is not known

# Hu et al. 2021 and what was measured on smollm2-135m; Hu et al.; Dettmers et al. 2023.
_OF_ADAPTERS = {0.5: [2e-4, 1e-3], 1.5: [2e-4, 5e-4], inf: [1e-4, 2e-4]}
# A base too small for all sources needs as much as an adapter. Devlin et al. 2019 and SmolLM2 of 135 M;
# Llama 2 and SmolLM2 of 1.7 B; Tülu 3 and Llama 2; Tülu 3.
_OF_ALL_PARAMETERS = {
    0.05: [1e-4, 5e-4],
    1: [5e-5, 1e-3],
    3: [2e-5, 3e-4],
    100: [5e-6, 2e-5],
    inf: [2e-6, 5e-6],
}
# Of trainings on pairs, in billions of parameters: smollm2-135m, reports/LOG.md; alignment-handbook's Zephyr.
_PAIRS_MEASURED, _PAIRS_PUBLISHED = 0.5, 20


def sweep_of_adapter(n_parameters: float | None) -> dict[str, Any]:
    """Return the sweep of a low-rank adapter on a base of a size; None stands for an unknown one."""
    return {"learning_rate": _first(_OF_ADAPTERS, n_parameters)}


def sweep_of_all_parameters(n_parameters: float | None) -> dict[str, Any]:
    """Return the sweep of a training of all parameters of a base of a size."""
    return {"learning_rate": _first(_OF_ALL_PARAMETERS, n_parameters)}


def params_on_pairs(n_parameters: float | None) -> dict[str, Any]:
    """Return the parameters of a training on pairs: none where the method's default was published.

    Of bases of 50 to 500 M parameters 3e-5 was measured, and is assumed of smaller ones; of larger ones than
    any source trained the default is assumed.
    """
    size = (n_parameters or _USUAL) / _BILLION
    if size <= _PAIRS_MEASURED:
        return {"params": {"learning_rate": 3e-5}}
    return {} if size <= _PAIRS_PUBLISHED else {"params": {"learning_rate": 5e-6}}


def _first(rates: dict[float, list[float]], n_parameters: float | None) -> list[float]:
    size = (n_parameters or _USUAL) / _BILLION
    return next(of for most, of in rates.items() if size < most)
