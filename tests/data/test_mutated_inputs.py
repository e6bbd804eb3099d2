"""Damaged files of every kind: draws of `mutations.py`, more of them in each slower tier."""

import pytest
from mutations import SHARES, Draws, write_seeds

# The range of draws over all readers.
TIERS = {"e2e": (0, 160), "slow": (160, 640), "weekly": (640, 10_640)}


@pytest.fixture(scope="module")
def seeds(finished_run, tiny, own_cache, tmp_path_factory):
    return write_seeds(tmp_path_factory.mktemp("mutated"), finished_run[0], tiny)


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("tier", [pytest.param(tier, marks=getattr(pytest.mark, tier)) for tier in TIERS])
def test_a_damaged_file_is_named_or_what_it_held_is_computed_again(tier, name, seeds, tmp_path):
    first, last = (round(n * SHARES[name]) for n in TIERS[tier])
    draws = Draws(name, seeds[name], tmp_path / "seeds")
    damaged_files = map(draws.draw, range(first, last))
    assert [damaged for damaged in damaged_files if damaged.wrong] == []
