"""Nights with a model that answers by rule: alarms, drift, kills, concurrent runs and reports.

test_nightly_command.py runs the command itself.
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
from harness.lifecycle import nightly, nightly_alarm
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

PATIENCE_S = 300  # long enough for a busy machine


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
    reports = [calendar.night(n) for n in range(1, 31)]
    assert {night_report.verdict for night_report in reports} <= {"ok", "suspect"}
    assert [night_report.new for night_report in reports] == [()] * 30
    evidence = line(reports[-1]).series["general"]
    assert (evidence.n, evidence.n_nights) == (1800, 30)
    assert evidence.gains > 50  # some answers differ between nights
    assert reports[-1].pool[0].endswith("never yet")


def test_an_alarm_is_raised_once_and_again_only_when_acknowledged_and_shown_anew(path):
    calendar = Calendar(path)
    bad_rates = Rates(general_lost=0.4, gained=0.0)
    night = calendar.night(1, bad_rates)
    assert (night.verdict, night.exit_code) == ("regression", 3)
    assert [(alarm.about, alarm.verdict) for alarm in night.new] == [("lora", "regression")]
    second_night = calendar.night(2, bad_rates)
    assert (second_night.verdict, second_night.new) == ("regression", ())
    assert [alarm.night for alarm in second_night.open] == ["2026-03-01"]
    closed_alarms = nightly.acknowledge(path, "lora")
    assert [alarm.about for alarm in closed_alarms] == ["lora"]
    assert nightly.status(path, "2026-03-02").open == ()
    night = calendar.night(3, bad_rates)
    assert [alarm.about for alarm in night.new] == ["lora"]
    assert line(night).series["general"].n_nights == 1, "evidence begins anew"


def test_to_acknowledge_one_alarm_leaves_the_others_open():
    alarms = tuple(Alarm(about, "regression", "2026-03-01", "") for about in ("lora", "champion knn"))
    state, closed_alarms = acknowledge_alarms(State({}, alarms), "lora", "2026-03-02")
    assert [alarm.about for alarm in closed_alarms] == ["lora"]
    assert [alarm.about for alarm in open_alarms(state)] == ["champion knn"]


def test_what_is_lost_is_named_apart_from_the_target_in_a_text_that_stays_until_somebody_opens_it(
    path, tmp_path
):
    night = Calendar(path).night(1, Rates(general_lost=0.4, lost=0.0, gained=0.0))
    assert line(night).series["general"].verdict == "regression"
    assert line(night).series["target"].verdict == "ok"
    assert all(item.split("/")[0] in ("chat", "sums", "facts", "reading") for item in line(night).lost)
    assert "lora: regression: target 0.0 [" in line(night).sentence

    *_, issue = nightly_alarm.write(night, tmp_path)
    assert issue not in nightly_alarm.write(replace(night, new=()), tmp_path)
    assert issue.read_text().startswith("Nightly world, 2026-03-01: lora: regression\n")


@pytest.mark.e2e
def test_frozen_answers_to_the_same_items_tell_nothing_new(path):
    calendar = Calendar(path, salt=0)
    reports = [calendar.night(n, STILL) for n in range(1, 7)]
    assert line(reports[-1]).series["general"].n == 240 - 20  # each item that is not an anchor counts once
    assert "general: the pool is used up" in "\n".join(reports[-1].pool)
    assert line(reports[0]).tests == ("only the harness: the weights answer as before",)


# The harness


@pytest.mark.e2e
def test_a_base_that_moves_is_the_harness_and_no_candidate_is_blamed(path):
    calendar = Calendar(path)
    calendar.night(1, Rates(base_moves=0.0))
    night = calendar.night(2, Rates(base_moves=0.5, general_lost=0.4))
    assert (night.verdict, night.exit_code) == ("harness-drift", 4)
    assert [alarm.about for alarm in night.new] == ["harness"]
    assert line(night).verdict == "harness-drift"
    nightly.acknowledge(path, "harness")
    assert calendar.night(2).new == (), "the night of an acknowledged drift is not alarmed about again"
    night = calendar.night(3, STILL)
    assert night.verdict == "ok"
    assert line(night).series["general"].n_nights == 2, "drift is not evidence"


METRIC = mean_metric("exact_match", lambda output, example: None)


def chat_rows(*scores):
    made_rows = (fake_project.row_of("chat", i, score, "a text") for i, score in enumerate(scores))
    return {("chat", row.example_id): row for row in made_rows}


def fail_rows(rows):
    return {item: replace(row, status="error", parts={METRIC.name: None}) for item, row in rows.items()}


def compare_night(new_rows, *old_rows, base_now=None, base_then=None, **policy):
    arms = NightArms(new_rows, old_rows, base_now, base_then)
    return compare_series(arms, (), [(item,) for item in new_rows], {"chat": METRIC}, **policy)


def drop_scores(rows):
    return {item: replace(row, parts={METRIC.name: None}) for item, row in rows.items()}


TWO_FAILED = {**chat_rows(1, 1, 1), **fail_rows(chat_rows(1, 1))}
MOVED, DROPPED = (
    {"base_now": now, "base_then": chat_rows(1, 1)} for now in (chat_rows(0, 1), drop_scores(chat_rows(1, 1)))
)
# New and old answers and options; expected changes, numbers of failed and omitted items, and validity.
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
    new_rows, old_rows, options, changes, errors, left_out, is_valid = NIGHTS[name]
    comparison = compare_night(new_rows, *old_rows, **options)
    assert [*comparison.changes] == [f"chat/chat-{i:03d}" for i in range(len(changes))]
    assert list(comparison.changes.values()) == pytest.approx(changes)
    assert (comparison.errors, comparison.left_out, comparison.valid) == (errors, left_out, is_valid)
    assert comparison.adjusted or name != "the base shows it too"


@pytest.mark.parametrize(
    ("n_failed", "n", "max_errors", "valid"),
    [
        (1, 80, 0.01, True), (2, 80, 0.01, False), (2, 199, 0.01, False), (2, 200, 0.01, True),
        (1, 80, 0, False),
    ],
)  # fmt: skip
def test_one_failure_among_few_answers_voids_no_night_unless_none_is_allowed(n_failed, n, max_errors, valid):
    rows = chat_rows(*[1] * n)
    night = compare_night({**rows, **fail_rows(chat_rows(*[1] * n_failed))}, rows, max_errors=max_errors)
    assert (night.errors, night.valid, sum(night.changes.values())) == (n_failed, valid, -n_failed)


# Kills, collisions, failures


# A fork of a process with threads may wait forever for a lock that another thread held.
SPAWN = multiprocessing.get_context("spawn")


def run_and_die(path):
    prompts = []

    def hears(prompt):
        prompts.append(prompt)
        if len(prompts) == 120:
            os.kill(os.getpid(), signal.SIGKILL)

    Calendar(path).night(1, asked=hears)


@pytest.mark.e2e
def test_a_night_whose_process_is_killed_goes_on_where_it_was_and_ends_as_an_undisturbed_one(path, tmp_path):
    shutil.copytree(path.parent, tmp_path / "other")
    undisturbed = Calendar(tmp_path / "other" / "harness.yaml")
    undisturbed.night(1)
    process = SPAWN.Process(target=run_and_die, args=(path,))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGKILL
    assert read_nights(folder_of(path)) == []
    assert nightly.status(path, "2026-03-01").unfinished == ("2026-03-01",)
    calendar = Calendar(path)
    assert calendar.night(1).verdict == "ok"
    assert 0 < len(calendar.asked) < len(undisturbed.asked)
    assert nightly.status(path, "2026-03-01").unfinished == ()
    (killed,), (complete,) = (read_nights(folder_of(p)) for p in (path, tmp_path / "other" / "harness.yaml"))
    assert (killed.candidates, killed.bases) == (complete.candidates, complete.bases)


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
    first_night = calendar.night(1)
    n_asked = len(calendar.asked)
    second_night = calendar.night(1)
    assert len(calendar.asked) == n_asked
    assert second_night.lines == first_night.lines


def test_one_candidate_that_fails_does_not_end_the_night_and_nobody_to_watch_is_refused(path):
    with pytest.raises(UserError, match="a candidate to watch"):
        Calendar(path, ["nightly.candidates=[]"]).night(1)
    with pytest.raises(UserError, match="did you mean 'lora'"):
        Calendar(path, ["nightly.candidates=[lorra]"]).night(1)
    calendar = Calendar(path, ["nightly.candidates=[knn, lora]"])
    night = calendar.night(1, STILL)
    assert (night.verdict, night.exit_code) == ("error", 1)
    assert line(night, "knn").verdict == "error"
    assert "harness compare --candidates knn" in line(night, "knn").sentence
    assert line(night).verdict == "ok"


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
    night = calendar.night(1, STILL)
    assert [night_line.name for night_line in night.lines] == ["champion lora"]
    assert night.verdict == "ok"


# Reports


def test_hostile_text_is_text_in_every_form_of_a_night(path):
    evil = "<b>x</b> | \x1b[31mred \u202egnp.exe"
    night = Calendar(path).night(1, Rates(general_lost=0.4, gained=0.0))
    alarm = replace(night.new[0], about=evil, sentence=evil)
    lines = (replace(line(night), name=evil, sentence=evil, lost=(evil,)),)
    fake = replace(night, sentence=evil, harness=evil, lines=lines, new=(alarm,), open=(alarm,))
    page, message = (
        report.markdown(document := nightly_alarm.night_document(fake)),
        slack([alarm], evil)["text"],
    )
    for text in (*map(str, report.terminal_lines(document)), page, issue(fake), message):
        assert not re.search("[\x1b\u202e]", text)
    assert "<b>" not in page
    assert not re.search("[<>]", message)
    assert "| x" not in page.replace("\\|", "")


def test_an_alarm_whose_night_is_killed_before_it_is_published_is_raised_again(path):
    def interrupt(night_report):
        raise KeyboardInterrupt

    calendar, bad_rates = Calendar(path), Rates(general_lost=0.4, gained=0.0)
    with pytest.raises(KeyboardInterrupt):
        calendar.night(1, bad_rates, publish=interrupt)
    nights_seen = []
    calendar.night(1, bad_rates, publish=nights_seen.append)
    calendar.night(1, bad_rates, publish=nights_seen.append)
    assert [[alarm.about for alarm in night.new] for night in nights_seen] == [["lora"], []]


@pytest.mark.e2e
def test_a_recipe_that_changed_is_compared_with_its_pinned_reference_until_a_new_one_is_asked_for(path):
    Calendar(path).night(1, STILL)
    changed_calendar = Calendar(path, ["candidates.lora.system=Reply with one word."])
    nights.worlds.write_training(changed_calendar.session, changed_calendar.session.candidates["lora"])
    night = changed_calendar.night(2, STILL)
    assert line(night).verdict == "ok"
    assert line(night).tests[0] == "another prompting, other shots or passages on desk"
    assert set(read_state(folder_of(path)).references) == {"lora"}
    nightly.acknowledge(path, "lora", new_reference=True)
    assert read_state(folder_of(path)).references == {}
