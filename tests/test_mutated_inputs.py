"""Damaged files of every kind: a few hundred of the draws of `mutations.py`, which draws ten thousand as a command."""

import pytest
from mutations import SHARES, Draws, write_seeds

N = 240


@pytest.fixture(scope="module")
def seeds(finished_run, tiny, own_cache, tmp_path_factory):
    return write_seeds(tmp_path_factory.mktemp("mutated"), finished_run[0], tiny)


@pytest.mark.e2e
@pytest.mark.parametrize("name", SHARES)
def test_a_damaged_file_is_named_or_what_it_held_is_computed_again(name, seeds, tmp_path):
    draws = Draws(name, seeds[name], tmp_path / "seeds")
    drawn = [draws.draw(number) for number in range(round(N * SHARES[name]))]
    assert [(one.number, one.how, one.file, one.words, one.wrong) for one in drawn if one.wrong] == []
