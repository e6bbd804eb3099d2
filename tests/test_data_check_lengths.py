"""The check of answer lengths: figures by source, an alarm where sources differ much, none where they do not."""

import gzip
import json
import random

import pytest
from checked_rows import WORDS, alarms, lines, texts
from conftest import find_shared_data


def answers_of(*sources, seed=1):
    """Rows of sources, each of a name, a number of rows and the words of its answers, in turn."""
    rng = random.Random(seed)
    rows = [
        {
            "prompt": " ".join(rng.sample(WORDS, 8)),
            "reference": " ".join(rng.choices(WORDS, k=rng.randint(1, 2 * n_words))),
            "origin": name,
        }
        for name, n, n_words in sources
        for _ in range(n)
    ]
    rng.shuffle(rows)
    return rows


def test_the_lengths_of_answers_are_figures_over_all_and_by_source(find):
    rows = [{"prompt": f"{WORDS[i]} {WORDS[-i]}?", "reference": "a" * (i + 1)} for i in range(101)]
    (alone,) = find(rows, "answer_lengths")
    assert (alone.severity, alone.title) == ("note", "characters an answer: median 51, 6 to 96")
    (both,) = find(
        [{**row, "origin": "ab"[i % 2]} for i, row in enumerate(rows)], "answer_lengths", source="origin"
    )
    assert both.title.endswith("by source 'a' median 51, 5 to 97 (51), 'b' median 50, 6 to 96 (50)")


@pytest.mark.parametrize(("n_words", "said"), [(30, "longer"), (2, "shorter")])
def test_a_source_of_much_longer_or_shorter_answers_is_an_alarm_with_its_rows(find, n_words, said):
    rows = answers_of(("forum", 40, n_words), ("mail", 80, 8), ("chat", 80, 8))
    (found,) = alarms(find(rows, "answer_lengths", source="origin"))
    assert found.title.startswith(f"answers of 'forum' are {said}: median ")
    assert lines(found) == [i + 1 for i, row in enumerate(rows) if row["origin"] == "forum"]
    assert (found.count, found.of) == (40, 200)


def test_sources_that_differ_surely_but_little_raise_no_alarm(find):
    rows = answers_of(("forum", 2_000, 8), ("mail", 2_000, 10))
    assert alarms(find(rows, "answer_lengths", source="origin")) == []


def test_two_kinds_of_answers_in_both_sources_by_another_share_raise_no_alarm(find):
    rng = random.Random(4)
    rows = [
        {**row, "reference": "yes" if rng.random() < share else row["reference"], "origin": name}
        for name, share in (("forum", 0.55), ("mail", 0.45))
        for row in texts(800, ord(name[0]))
    ]
    assert alarms(find(rows, "answer_lengths", source="origin")) == []


def test_labels_have_no_lengths(find):
    rows = [
        {"prompt": f"{WORDS[i]} {WORDS[-i]}?", "reference": ("no", "certainly")[i % 2]} for i in range(60)
    ]
    rows = [{**row, "origin": "ab"[i % 2]} for i, row in enumerate(rows)]
    assert find(rows, "answer_lengths", source="origin") == ()


def test_a_column_source_tells_sources_apart_unnamed_and_one_of_many_values_does_not(find):
    rows = [{**row, "source": row.pop("origin")} for row in answers_of(("forum", 40, 30), ("mail", 60, 6))]
    (found,) = alarms(find(rows, "answer_lengths"))
    assert "answers of 'forum'" in found.title
    own = [{**row, "source": f"https://example.org/{i}"} for i, row in enumerate(rows)]
    assert "by source" not in find(own, "answer_lengths")[0].title


def test_answers_drawn_into_sources_by_chance_raise_no_alarm(find):
    """At the level of 0.001 for each draw 1 of 25 raises one with a chance of 2.5 % at most; none does."""
    with gzip.open(find_shared_data("rows/dolly_3k/train.jsonl.gz"), "rt", encoding="utf-8") as file:
        dolly = [json.loads(line) for line in file]
    raised = 0
    for seed in range(25):
        rng = random.Random(seed)
        k = rng.randint(2, 8)
        rows = [
            {"prompt": row["instruction"], "reference": row["output"], "origin": str(rng.randrange(k))}
            for row in rng.sample(dolly, rng.randint(60, 600))
        ]
        raised += bool(alarms(find(rows, "answer_lengths", source="origin")))
    assert raised == 0
