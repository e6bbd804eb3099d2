"""Recipe lint: settings of a training outside of published ranges, by its kind and the size of the model.

Invariant: nothing is refused; the ranges and their sources stand in `recipe_ranges.toml` alone. A setting is
named with all sources that speak of such a model, unless it lies within the range of one.
"""

import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from harness import plugins

TABLE = Path(__file__).with_name("recipe_ranges.toml")
BATCH = "batch"  # rows of a step
_RATE = "learning_rate"
_FACTORS = ("per_device_train_batch_size", "gradient_accumulation_steps")
_KEYS = {BATCH: {*_FACTORS}}  # by setting, where it is not its own key
_BILLION = 1e9


class Range(NamedTuple):
    """Published range of a setting: of which training, for models of which size in billions, and its source.

    `training` is the kind that methods declare as `published_as`; `only` holds other settings that it needs.
    """

    training: str
    setting: str
    source: str
    low: float = -inf
    high: float = inf
    from_b: float = 0.0
    to_b: float = inf
    only: Mapping[str, Any] = {}

    def speaks_of(self, method: str, params: Mapping[str, Any], n_parameters: float) -> bool:
        """Tell whether the source speaks of such a training."""
        sized = self.from_b <= n_parameters / _BILLION <= self.to_b
        same = plugins.method(method).published_as == self.training
        return same and sized and all(params.get(k) == v for k, v in self.only.items())


@cache
def ranges() -> tuple[Range, ...]:
    """Read the table."""
    rows = tomllib.loads(TABLE.read_text("utf-8"))["range"]
    return tuple(Range(**row) for row in rows)


def lint(
    method: str, params: Mapping[str, Any], n_parameters: float, written: Collection[str] = ()
) -> Iterator[str]:
    """Say which settings of a training lie outside of what was published, and by whom; `params` are whole.

    Of those that nobody has `written` it is said that they are the method's defaults; one of these is named
    only below or above all sources, not between them. A default rate is named too where all that was
    published is of other sizes.
    """
    rows, steps = (params.get(name) for name in _FACTORS)
    known = {**params, BATCH: rows * steps if rows and steps else None}
    speaking = [one for one in ranges() if one.speaks_of(method, params, n_parameters)]
    for setting in dict.fromkeys(one.setting for one in speaking):
        value, sources = known.get(setting), [one for one in speaking if one.setting == setting]
        is_written = not _KEYS.get(setting, {setting}).isdisjoint(written)
        if value is not None and (place := _place(value, sources, between=is_written)):
            said = "; ".join(f"{_span(one)} ({one.source})" for one in sources)
            name = "rows of a step" if setting == BATCH else setting
            default = "" if is_written else ", the default,"
            yield f"{name} {value:g}{default} is {place} for {_size(n_parameters)}: {said}"
    training = plugins.method(method).published_as
    others = [one for one in ranges() if one.setting == _RATE and one.training == training]
    if others and _RATE not in {*written, *(one.setting for one in speaking)}:
        sizes = f"{min(one.from_b for one in others):g} to {max(one.to_b for one in others):g} B"
        said = f"is assumed for {_size(n_parameters)}: what was published is of models of {sizes}"
        yield f"{_RATE} {params[_RATE]:g}, the default, {said}"


def _place(value: float, sources: Sequence[Range], *, between: bool) -> str:
    """Say where a value lies outside of ranges; empty within one, and `between` them only on request."""
    if value < min(one.low for one in sources):
        return "below what was published"
    if value > max(one.high for one in sources):
        return "above what was published"
    is_given = any(one.low <= value <= one.high for one in sources)
    return "between what sources give, which conflict" if between and not is_given else ""


def _span(of: Range) -> str:
    if of.low == of.high:
        return f"{of.low:g}"
    if of.low == -inf:
        return f"at most {of.high:g}"
    return f"at least {of.low:g}" if of.high == inf else f"{of.low:g} to {of.high:g}"


def _size(n_parameters: float) -> str:
    size = f"{n_parameters / _BILLION:.3g} B" if n_parameters >= _BILLION else f"{n_parameters / 1e6:.3g} M"
    return f"a model of {size} parameters"
