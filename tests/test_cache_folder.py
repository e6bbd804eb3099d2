"""What the cache remembers: once, whole, and the same for all processes that make it together."""

import pytest

from harness import cache


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    return tmp_path


def test_what_is_remembered_is_made_once_and_none_again(folder):
    made = []
    values = [cache.memo("kind", "key", lambda: made.append(1) or [1, 2]) for _ in range(2)]
    assert values == [[1, 2]] * 2
    assert len(made) == 1
    assert cache.memo("kind", "none", lambda: None) is None
    assert cache.memo("kind", "none", lambda: 1) == 1


def test_of_two_processes_that_make_it_together_the_first_holds_for_both():
    def make():
        cache.memo("costs", "card", lambda: "first")  # another process, which is done earlier
        return "second"

    assert cache.memo("costs", "card", make) == "first"
    assert cache.memo("costs", "card", lambda: "third") == "first"
