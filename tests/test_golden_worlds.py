"""Reports, verdicts and views of stored worlds are what they were, to 1e-9; `--update-golden` freezes them anew."""

import json
import math
from pathlib import Path

import pytest
import stored

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("module_cache")]

GOLDEN = Path(__file__).parent / "golden_worlds"


@pytest.mark.parametrize("world", stored.WORLDS, ids=lambda world: world.__name__)
def test_what_is_said_of_a_stored_world_is_what_was_said(world, tmp_path, request):
    file = GOLDEN / f"{world.__name__}.json"
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
