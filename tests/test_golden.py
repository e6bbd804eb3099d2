"""Published reference values and stored worlds: each value is asked for by a test and comes out as frozen."""

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
    for path in sorted(Path(__file__).parent.glob("test_*.py"))
    if path != Path(__file__)
)


@pytest.mark.parametrize("key", GOLDEN)
def test_a_reference_value_and_each_of_its_parts_are_asked_for_by_a_test(key):
    filled_in = re.sub(r"(?<=K)\d+$", "{k}", key)
    assert f'golden("{key}")' in ASKING or f'golden(f"{filled_in}")' in ASKING
    parts = GOLDEN[key]["value"] if isinstance(GOLDEN[key]["value"], dict) else ()
    named = [part for part in parts if part.isidentifier()]  # others are gone through
    assert [p for p in named if f'"{p}"' not in ASKING and re.sub(r"^r\d+", "r{r}", p) not in ASKING] == []


FROZEN = Path(__file__).parent / "golden_worlds"


@pytest.fixture
def ticking_clock(monkeypatch):
    """Let each reading of the clock be a millisecond later, so that no cost depends on the machine's load."""
    readings = itertools.count()
    for clock in ("time.perf_counter", "harness.evaluation.timing.perf_counter"):
        monkeypatch.setattr(clock, lambda: next(readings) / 1000)


@pytest.mark.e2e
@pytest.mark.usefixtures("rule_cache", "ticking_clock")
@pytest.mark.parametrize("world", stored.WORLDS, ids=lambda world: world.__name__)
def test_what_is_said_of_a_stored_world_is_what_was_said(world, tmp_path, request):
    file = FROZEN / f"{world.__name__}.json"
    found = stored.plain(world(tmp_path))
    if request.config.getoption("--update-golden"):
        file.write_text(stored.dump(found), "utf-8")
    expected, now = dict(stored.leaves(json.loads(file.read_text("utf-8")))), dict(stored.leaves(found))
    differing = [
        f"{key}: {expected.get(key, 'absent')!r} → {now.get(key, 'absent')!r}"
        for key in dict.fromkeys([*expected, *now])
        if key not in expected or key not in now or differ(expected[key], now[key])
    ]
    assert differing == []


def differ(one, other):
    if isinstance(one, float) and isinstance(other, float | int):
        return not math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)
    return one != other
