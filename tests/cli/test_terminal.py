"""Progress on stderr, a time left that is never negative, and a note about a running comparison."""

import pytest

from harness import store
from harness.cli.progress_bar import TerminalProgress
from harness.progress import SilentProgress
from harness.store import Store, StoredProgress


def test_nothing_is_written_to_stdout_and_by_the_silent_progress_nothing_at_all(capsys):
    progress = TerminalProgress()
    with progress.follow({"a": 60.0}), progress.stage("training [x]", 60.0) as advance:
        advance(1, 2, "loss 1.0")
        progress.finish("a", "a is [bold]done")
    stdout, err = capsys.readouterr()
    assert stdout == ""
    assert "training [x]" in err
    assert "a is [bold]done" in err
    with SilentProgress().stage("stage", 100.0) as advance:
        advance(1, 2, "loss 1.0")
    SilentProgress().finish("a", "a is done")
    assert capsys.readouterr() == ("", "")


def lines_of_a_log(capsys):
    return capsys.readouterr().err.splitlines()


def test_a_log_gets_one_line_a_minute_on_what_is_done_and_how_long_it_still_takes(capsys):
    now = [0.0]
    progress = TerminalProgress(lambda: now[0])
    with progress.follow({"lora": 600.0, "shots": 60.0}), progress.stage("lora: training", 600.0) as advance:
        assert lines_of_a_log(capsys) == ["lora: training … about 11 min 0 s left in all"]
        for second in range(0, 300, 5):
            now[0] = float(second)
            advance(second, 600, "loss 1.20")
            progress.say_where()
    lines = lines_of_a_log(capsys)
    assert lines == [
        f"lora: training … {m}0 %, loss 1.20, {m} min 0 s so far, about {11 - m} min 0 s left in all"
        for m in range(1, 5)
    ]


@pytest.mark.parametrize("slower", [2.0])
def test_after_a_minute_the_time_left_is_less_than_a_third_off_on_a_machine_of_another_pace(slower):
    """The first stage is short and takes five times its estimate: a model is loaded in it."""
    now = [0.0]
    progress = TerminalProgress(lambda: now[0])
    plan = {"prompt": 2.0, "lora": 300.0, "shots": 100.0}
    with progress.follow(plan):
        left_s, off = slower * sum(plan.values()), []
        for name, expected_s in plan.items():
            with progress.stage(name, expected_s) as advance:
                now[0] += 10.0 if name == "prompt" else 0.0
                for step in range(1, 101):
                    now[0] += slower * expected_s / 100
                    left_s -= slower * expected_s / 100
                    advance(step, 100)
                    said_s = progress._estimate_left_s(progress._stages[-1])
                    off += [said_s / left_s] if now[0] > 60 and left_s > 1 else []
            progress.finish(name, f"{name} is done")
    assert 2 / 3 < min(off) <= max(off) < 4 / 3


def test_a_stage_is_noted_while_the_store_is_held_and_a_killed_process_leaves_no_note(tmp_path):
    at = Store(tmp_path / "runs")
    with store.hold(at):
        assert store.current_activity(at) == {}
        progress = StoredProgress(SilentProgress(), at, "A comparison", ["prompt", "shots", "lora"])
        progress.finish("capability suite of the base", "measured")
        progress.finish("prompt", "prompt: done")
        with progress.stage("lora: chat", 5.0) as advance:
            assert store.current_activity(at) == {
                "what": "A comparison",
                "candidates": 3,
                "finished": ["prompt"],
                "stage": "lora: chat",
                "share": 0.0,
            }
            advance(1, 4)
    assert store.current_activity(at) is None

    with store.hold(at):
        StoredProgress(SilentProgress(), at, "A comparison", ["prompt"]).finish("prompt", "prompt: done")
    with store.hold(at):
        assert store.current_activity(at) == {}
