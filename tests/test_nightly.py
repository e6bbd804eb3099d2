"""Nights on sessions whose model answers by rule: alarms, drift, kills, two at once, and what is told of them.

The command itself is run in test_nightly_command.py.
"""

import json
import multiprocessing
import os
import re
import shutil
import signal
from dataclasses import replace

import fake_project
import inbox
import nights
import pytest
from filelock import FileLock
from nights import STILL, Calendar, Rates, folder_of
from nights import line_of as line

from harness import report
from harness.errors import HarnessError, UserError
from harness.lifecycle import nightly
from harness.lifecycle.nightly_alarm import issue, slack
from harness.lifecycle.nightly_changes import NightArms, compare_series
from harness.lifecycle.nightly_state import (
    Alarm,
    State,
    acknowledge_alarms,
    open_alarms,
    read_nights,
    read_state,
)
from harness.metrics import mean_metric

pytestmark = pytest.mark.usefixtures("rule_cache")

PATIENCE_S = 300  # for a machine that is busy with other things


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    nights.world(folder)
    return folder


@pytest.fixture
def path(small_world, tmp_path):
    shutil.copytree(small_world, tmp_path / "copy")
    return tmp_path / "copy" / "harness.yaml"


@pytest.mark.slow
def test_thirty_nights_without_a_change_raise_no_alarm(tmp_path):
    calendar = Calendar(nights.world(tmp_path, test=1900, general=480))
    found = [calendar.night(n) for n in range(1, 31)]
    assert {one.verdict for one in found} <= {"ok", "suspect"}
    assert [one.new for one in found] == [()] * 30
    evidence = line(found[-1]).series["general"]
    assert (evidence.n, evidence.n_nights) == (1800, 30)
    assert evidence.gains > 50  # something did differ from night to night
    assert found[-1].pool[0].endswith("never yet")


def test_an_alarm_is_raised_once_and_again_only_when_acknowledged_and_shown_anew(path):
    calendar = Calendar(path)
    bad = Rates(general_lost=0.4, gained=0.0)
    found = calendar.night(1, bad)
    assert (found.verdict, found.exit_code) == ("regression", 3)
    assert [(a.about, a.verdict) for a in found.new] == [("lora", "regression")]
    again = calendar.night(2, bad)
    assert (again.verdict, again.new) == ("regression", ())
    assert [a.night for a in again.open] == ["2026-03-01"]
    closed = nightly.acknowledge(path, "lora")
    assert [a.about for a in closed] == ["lora"]
    assert nightly.status(path, "2026-03-02").open == ()
    found = calendar.night(3, bad)
    assert [a.about for a in found.new] == ["lora"]
    assert line(found).series["general"].n_nights == 1, "evidence begins anew"


def test_to_acknowledge_one_alarm_leaves_the_others_open():
    alarms = tuple(Alarm(about, "regression", "2026-03-01", "") for about in ("lora", "champion knn"))
    state, closed = acknowledge_alarms(State({}, alarms), "lora", "2026-03-02")
    assert [a.about for a in closed] == ["lora"]
    assert [a.about for a in open_alarms(state)] == ["champion knn"]


def test_what_is_lost_is_named_apart_from_the_target_in_a_text_that_stays_until_somebody_opens_it(
    path, tmp_path
):
    found = Calendar(path).night(1, Rates(general_lost=0.4, lost=0.0, gained=0.0))
    assert line(found).series["general"].verdict == "regression"
    assert line(found).series["target"].verdict == "ok"
    assert all(item.split("/")[0] in ("chat", "sums", "facts", "reading") for item in line(found).lost)
    assert "lora: regression: target 0.0 [" in line(found).sentence

    *_, issue = nightly.write(found, tmp_path)
    assert issue not in nightly.write(replace(found, new=()), tmp_path)
    assert issue.read_text().startswith("Nightly world, 2026-03-01: lora: regression\n")


@pytest.mark.e2e
def test_frozen_answers_to_the_same_items_tell_nothing_new(path):
    calendar = Calendar(path, salt=0)
    found = [calendar.night(n, STILL) for n in range(1, 7)]
    assert line(found[-1]).series["general"].n == 240 - 20  # all that is not an anchor, once
    assert "general: the pool is used up" in "\n".join(found[-1].pool)
    assert line(found[0]).tests == ("only the harness: the weights answer as before",)


# The harness


@pytest.mark.e2e
def test_a_base_that_moves_is_the_harness_and_no_candidate_is_blamed(path):
    calendar = Calendar(path)
    calendar.night(1, Rates(base_moves=0.0))
    found = calendar.night(2, Rates(base_moves=0.5, general_lost=0.4))
    assert (found.verdict, found.exit_code) == ("harness-drift", 4)
    assert [a.about for a in found.new] == ["harness"]
    assert line(found).verdict == "harness-drift"
    nightly.acknowledge(path, "harness")
    assert calendar.night(2).new == (), "the night of an acknowledged drift is not alarmed about again"
    found = calendar.night(3, STILL)
    assert found.verdict == "ok"
    assert line(found).series["general"].n_nights == 2, "drift is no evidence"


METRIC = mean_metric("exact_match", lambda output, example: None)


def chat_rows(*scores):
    made = (fake_project.row_of("chat", i, score, "a text") for i, score in enumerate(scores))
    return {("chat", row.example_id): row for row in made}


def fail_rows(rows):
    return {item: replace(row, status="error", parts={METRIC.name: None}) for item, row in rows.items()}


def compare_night(now, *then, base_now=None, base_then=None, **policy):
    arms = NightArms(now, then, base_now, base_then)
    return compare_series(arms, (), [(item,) for item in now], {"chat": METRIC}, **policy)


def drop_scores(rows):
    return {item: replace(row, parts={METRIC.name: None}) for item, row in rows.items()}


TWO_FAILED = {**chat_rows(1, 1, 1), **fail_rows(chat_rows(1, 1))}
MOVED, DROPPED = (
    {"base_now": now, "base_then": chat_rows(1, 1)} for now in (chat_rows(0, 1), drop_scores(chat_rows(1, 1)))
)
# The answers now and then; what is changed, how many failed and are left out, and whether the night counts.
NIGHTS = {
    "the base shows it too": (chat_rows(0, 0), [chat_rows(1, 1)], MOVED, [0, -1], 0, 0, True),
    "the mean of the makings": (
        *(chat_rows(0, 1), [chat_rows(1, 1), chat_rows(1, 0), chat_rows(1, 0)]),
        *({}, [-1, 2 / 3], 0, 0, True),
    ),
    "failed": (TWO_FAILED, [chat_rows(1, 1, 1)], {"max_errors": 0.7}, [-1, -1, 0], 2, 0, True),
    "too many failed": (TWO_FAILED, [chat_rows(1, 1, 1)], {"max_errors": 0.6}, [-1, -1, 0], 2, 0, False),
    "no longer scored": (drop_scores(chat_rows(1, 1)), [chat_rows(1, 1)], {}, [-1, -1], 2, 0, False),
    "the base was not scored": (chat_rows(1, 1), [chat_rows(1, 1)], DROPPED, [], 2, 2, False),
}


@pytest.mark.parametrize("name", NIGHTS)
def test_a_night_compares_what_base_and_candidate_could_answer_then_and_now(name):
    now, then, options, changes, errors, left_out, valid = NIGHTS[name]
    found = compare_night(now, *then, **options)
    assert [*found.changes] == [f"chat/chat-{i:03d}" for i in range(len(changes))]
    assert list(found.changes.values()) == pytest.approx(changes)
    assert (found.errors, found.left_out, found.valid) == (errors, left_out, valid)
    assert found.adjusted or name != "the base shows it too"


@pytest.mark.parametrize(
    ("n_failed", "n", "max_errors", "valid"),
    [
        (1, 80, 0.01, True), (2, 80, 0.01, False), (2, 199, 0.01, False), (2, 200, 0.01, True),
        (1, 80, 0, False),
    ],
)  # fmt: skip
def test_one_failure_among_few_answers_voids_no_night_unless_none_is_allowed(n_failed, n, max_errors, valid):
    then = chat_rows(*[1] * n)
    found = compare_night({**then, **fail_rows(chat_rows(*[1] * n_failed))}, then, max_errors=max_errors)
    assert (found.errors, found.valid, sum(found.changes.values())) == (n_failed, valid, -n_failed)


# Kills, collisions, failures


# A fork of a process with threads may wait for ever on what one of them had locked.
SPAWN = multiprocessing.get_context("spawn")


def run_and_die(path):
    seen = []

    def hears(prompt):
        seen.append(prompt)
        if len(seen) == 120:
            os.kill(os.getpid(), signal.SIGKILL)

    Calendar(path).night(1, asked=hears)


@pytest.mark.e2e
def test_a_night_whose_process_is_killed_goes_on_where_it_was_and_ends_as_an_undisturbed_one(path, tmp_path):
    shutil.copytree(path.parent, tmp_path / "other")
    whole = Calendar(tmp_path / "other" / "harness.yaml")
    whole.night(1)
    process = SPAWN.Process(target=run_and_die, args=(path,))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGKILL
    assert read_nights(folder_of(path)) == []
    assert nightly.status(path, "2026-03-01").unfinished == ("2026-03-01",)
    calendar = Calendar(path)
    assert calendar.night(1).verdict == "ok"
    assert 0 < len(calendar.asked) < len(whole.asked)
    assert nightly.status(path, "2026-03-01").unfinished == ()
    (one,), (other,) = (read_nights(folder_of(p)) for p in (path, tmp_path / "other" / "harness.yaml"))
    assert (one.candidates, one.bases) == (other.candidates, other.bases)


@pytest.mark.e2e
def test_nothing_is_acknowledged_while_a_night_is_at_work_and_a_webhook_hears_of_an_alarm_once(path):
    Calendar(path).night(1, Rates(general_lost=0.4, gained=0.0))
    with FileLock(folder_of(path) / ".lock"):
        with pytest.raises(HarnessError, match="another nightly run"):
            nightly.acknowledge(path, "lora")
        with pytest.raises(HarnessError, match="another nightly run"):
            Calendar(path).night(2)

    assert "did not take it" in nightly.send(path, "http://127.0.0.1:9/hook", "2026-03-01")
    with inbox.open_inbox() as (address, received):
        assert nightly.send(path, address, "2026-03-01") == ""
        assert nightly.send(path, address, "2026-03-02") == ""
    (message,) = received
    assert set(message) == {"text"}
    assert message["text"].startswith("harness nightly, world: regression (2026-03-01): lora: regression")
    assert read_state(folder_of(path)).alarms[0].told == "2026-03-01"


def test_a_night_keeps_off_a_compare_at_work_and_one_that_is_finished_asks_nobody_again(path):
    calendar = Calendar(path)
    with FileLock(path.parent / "runs" / "compare.lock"), pytest.raises(HarnessError, match="is in use"):
        calendar.night(1)
    first = calendar.night(1)
    n = len(calendar.asked)
    again = calendar.night(1)
    assert len(calendar.asked) == n
    assert again.lines == first.lines


def test_one_candidate_that_fails_does_not_end_the_night_and_nobody_to_watch_is_refused(path):
    with pytest.raises(UserError, match="a candidate to watch"):
        Calendar(path, ["nightly.candidates=[]"]).night(1)
    with pytest.raises(UserError, match="did you mean 'lora'"):
        Calendar(path, ["nightly.candidates=[lorra]"]).night(1)
    calendar = Calendar(path, ["nightly.candidates=[knn, lora]"])
    found = calendar.night(1, STILL)
    assert (found.verdict, found.exit_code) == ("error", 1)
    assert line(found, "knn").verdict == "error"
    assert "harness compare --candidates knn" in line(found, "knn").sentence
    assert line(found).verdict == "ok"


@pytest.mark.e2e
def test_items_that_changed_since_the_reference_are_left_out_and_counted(path):
    Calendar(path).night(1, STILL)
    file = path.parent / "suites" / "general" / "chat.jsonl"
    rows = [json.loads(row) for row in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**row, "reference": "gumlet"}) + "\n" for row in rows))
    assert Calendar(path).night(2, STILL).verdict == "ok"
    general = read_nights(folder_of(path))[-1].candidates[0].series["general"]
    assert general.left_out > 10
    assert not any(cluster.startswith("chat/") for cluster in general.changes)


@pytest.mark.e2e
def test_the_champion_is_watched_against_its_own_rows(path):
    from harness.lifecycle import release

    release.promote_named(path, "lora", despite="too few items here")
    calendar = Calendar(path, ["nightly.candidates=[]"])
    found = calendar.night(1, STILL)
    assert [one.name for one in found.lines] == ["champion lora"]
    assert found.verdict == "ok"


# What is told


def test_hostile_text_is_text_in_every_form_of_a_night(path):
    evil = "<b>x</b> | \x1b[31mred \u202egnp.exe"
    found = Calendar(path).night(1, Rates(general_lost=0.4, gained=0.0))
    alarm = replace(found.new[0], about=evil, sentence=evil)
    lines = (replace(line(found), name=evil, sentence=evil, lost=(evil,)),)
    told = replace(found, sentence=evil, harness=evil, lines=lines, new=(alarm,), open=(alarm,))
    page, message = report.markdown(document := nightly.night_document(told)), slack([alarm], evil)["text"]
    for text in (*map(str, report.terminal_lines(document)), page, issue(told), message):
        assert not re.search("[\x1b\u202e]", text)
    assert "<b>" not in page
    assert not re.search("[<>]", message)
    assert "| x" not in page.replace("\\|", "")


def test_an_alarm_whose_night_is_killed_before_it_is_published_is_raised_again(path):
    def interrupt(found):
        raise KeyboardInterrupt

    calendar, bad = Calendar(path), Rates(general_lost=0.4, gained=0.0)
    with pytest.raises(KeyboardInterrupt):
        calendar.night(1, bad, publish=interrupt)
    published = []
    calendar.night(1, bad, publish=published.append)
    calendar.night(1, bad, publish=published.append)
    assert [[a.about for a in found.new] for found in published] == [["lora"], []]


@pytest.mark.e2e
def test_a_recipe_that_changed_is_compared_with_its_pinned_reference_until_a_new_one_is_asked_for(path):
    Calendar(path).night(1, STILL)
    changed = Calendar(path, ["candidates.lora.system=Reply with one word."])
    nights.worlds.write_training(changed.session, changed.session.candidates["lora"])
    found = changed.night(2, STILL)
    assert line(found).verdict == "ok"
    assert line(found).tests[0] == "another prompting, other shots or passages on desk"
    assert set(read_state(folder_of(path)).references) == {"lora"}
    nightly.acknowledge(path, "lora", new_reference=True)
    assert read_state(folder_of(path)).references == {}
