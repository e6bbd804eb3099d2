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


def sweep_of_adapter(n_parameters: float | None) -> dict[str, Any]:
    """Return the sweep of a low-rank adapter on a base of a size; None stands for an unknown one."""
    return {"learning_rate": _first(_OF_ADAPTERS, n_parameters)}


def sweep_of_all_parameters(n_parameters: float | None) -> dict[str, Any]:
    """Return the sweep of a training of all parameters of a base of a size."""
    return {"learning_rate": _first(_OF_ALL_PARAMETERS, n_parameters)}


def params_on_pairs(n_parameters: float | None) -> dict[str, Any]:
    """Return the parameters of a training on pairs: 3e-5 where that was measured, else the default."""
    is_measured = n_parameters is not None and 0.05 <= n_parameters / _BILLION <= 0.5
    return {"params": {"learning_rate": 3e-5}} if is_measured else {}


def _first(rates: dict[float, list[float]], n_parameters: float | None) -> list[float]:
    size = (n_parameters or _USUAL) / _BILLION
    return next(of for most, of in rates.items() if size < most)
