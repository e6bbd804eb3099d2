"""Published reference values and stored worlds: each value is used by a test and reproduced."""

import itertools
import json
import math
import re
from pathlib import Path

import pytest
import stored

from tests.golden import GOLDEN

ASKING = "\n".join(
    path.read_text("utf-8")
    for path in sorted(Path(__file__).parents[1].rglob("test_*.py"))
    if path != Path(__file__)
)


@pytest.mark.parametrize("key", GOLDEN)
def test_a_reference_value_and_each_of_its_parts_are_asked_for_by_a_test(key):
    filled_in = re.sub(r"(?<=K)\d+$", "{k}", key)
    assert f'golden("{key}")' in ASKING or f'golden(f"{filled_in}")' in ASKING
    parts = GOLDEN[key]["value"] if isinstance(GOLDEN[key]["value"], dict) else ()
    names = [part for part in parts if part.isidentifier()]  # tests iterate over the other parts
    assert [p for p in names if f'"{p}"' not in ASKING and re.sub(r"^r\d+", "r{r}", p) not in ASKING] == []


@pytest.fixture
def ticking_clock(monkeypatch):
    """Advance the clock by a millisecond per reading, so that no cost depends on the machine's load."""
    ticks = itertools.count()
    for clock_name in ("time.perf_counter", "harness.evaluation.timing.perf_counter"):
        monkeypatch.setattr(clock_name, lambda: next(ticks) / 1000)


@pytest.mark.e2e
@pytest.mark.usefixtures("rule_cache", "ticking_clock")
@pytest.mark.parametrize("world", stored.WORLDS, ids=lambda world: world.__name__)
def test_what_is_said_of_a_stored_world_is_what_was_said(world, tmp_path, request):
    file = Path(__file__).parents[1] / "golden_worlds" / f"{world.__name__}.json"
    result = stored.plain(world(tmp_path))
    if request.config.getoption("--update-golden"):
        file.write_text(stored.dump(result), "utf-8")
    old_leaves, leaves = dict(stored.leaves(json.loads(file.read_text("utf-8")))), dict(stored.leaves(result))
    differences = [
        f"{key}: {old_leaves.get(key, 'absent')!r} → {leaves.get(key, 'absent')!r}"
        for key in dict.fromkeys([*old_leaves, *leaves])
        if key not in old_leaves or key not in leaves or differ(old_leaves[key], leaves[key])
    ]
    assert differences == []


def differ(old, new):
    if isinstance(old, float) and isinstance(new, float | int):
        return not math.isclose(old, new, rel_tol=1e-9, abs_tol=1e-9)
    return old != new
