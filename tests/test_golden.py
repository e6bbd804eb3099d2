"""Published reference values and stored worlds: each value is asked for by a test and comes out as frozen."""

import itertools
import json
import math
import re
from pathlib import Path

import pytest
import stored

from tests.golden import GOLDEN

NOT_BUILT = {  # what belongs to nothing here, with the reason
    "cl": "releases are compared with the first base, and no transfer over a series of them is printed",
    "distinct": "varied answers are counted whole, and not by n-grams",
    "ece": "no confidences are asked for",
    "kl": "drift is printed in bits per byte",
    "mde_disc10": "what items can show is said as power at a margin",
    "miller_mde_198_K1": "the same, and each item is asked once",
    "miller_mde_198_K10": "the same, and each item is asked once",
    "miller_n_969": "items needed are those for a margin",
    "resample_cut": "each item is asked once, greedily",
    "ni_n": "items needed come from the interval that judges, which has no closed form",
    "resample_var": "each item is asked once, greedily",
    "se_math": "intervals of rates are Wilson's",
    "normal_mixture": "ends of a mean change come from the bets that alarm",
}
PARTS_NOT_BUILT = {
    "bca_law accel": "the acceleration is inside the interval, which is tested",
    "bca_law z0": "the bias is inside the interval, which is tested",
    "bca_law pct95": "percentiles are what BCa falls back to, and are offered by no name",
    "bt_2p_60_40 elo_ci95": "intervals of strengths resample items; this one is Wald's",
    "bt_2p_60_40 se_logit": "intervals of strengths resample items; this error is Wald's",
    "darwin perm_one_sided": "p-values come from the intervals beside them, and no signs are flipped",
    "darwin perm_two_sided": "the same",
    "darwin wilcoxon": "the same; ranks are not summed either",
    "multi by": "comparisons with one reference depend positively, so Benjamini-Hochberg holds",
    "qlora_65b nodq_GB": "NF4 bases are always quantised twice",
    "vram_llama2_7b fp32_16_GB": "the sum of mixed precision again, for weights in fp32",
    "vram_llama2_7b pure_bf16_8_GB": "nothing is trained in pure bf16",
    "vram_llama2_7b nf4_w_GB_4p5": "NF4 bases are always quantised twice",
}
ASKING = "\n".join(
    path.read_text("utf-8")
    for path in sorted(Path(__file__).parent.glob("test_*.py"))
    if path != Path(__file__)
)
BUILT = sorted(set(GOLDEN) - set(NOT_BUILT))


def is_asked_for(key):
    """Tell whether a test calls golden("…") with the key, a number at its end possibly filled in."""
    filled_in = re.sub(r"(?<=K)\d+$", "{k}", key)
    return f'golden("{key}")' in ASKING or f'golden(f"{filled_in}")' in ASKING


@pytest.mark.parametrize("key", BUILT)
def test_a_reference_value_is_asked_for_by_a_test(key):
    assert is_asked_for(key), "test it, or say in NOT_BUILT why not"


@pytest.mark.parametrize(
    ("key", "part"),
    [
        (key, part)
        for key in BUILT
        if isinstance(GOLDEN[key]["value"], dict)
        for part in GOLDEN[key]["value"]
        if part.isidentifier() and f"{key} {part}" not in PARTS_NOT_BUILT  # others are gone through
    ],
)
def test_a_part_of_a_reference_value_is_named_by_a_test(key, part):
    assert f'"{part}"' in ASKING or re.sub(r"^r\d+", "r{r}", part) in ASKING, f"{key}: test it as well"


def test_what_is_left_out_is_in_the_file_and_is_asked_for_by_nobody():
    assert set(NOT_BUILT) <= set(GOLDEN)
    assert not any(is_asked_for(key) for key in NOT_BUILT)
    for name in PARTS_NOT_BUILT:
        key, part = name.split()
        assert part in GOLDEN[key]["value"]


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
