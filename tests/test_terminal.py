"""Progress goes to stderr, and the time left is never below nothing."""

import pytest
from rich.text import Text

from harness.cli.progress_bar import TerminalProgress, console
from harness.progress import Silent, quiet_libraries


def notes(progress, *steps):
    """Report steps of one stage; return what stands beside the bar after each."""
    said = []
    with progress.stage("stage", 10.0) as advance:
        for done in steps:
            advance(done, 4)
            said.append(progress._bar.tasks[-1].fields["note"])
    return said


def test_nothing_is_written_to_stdout(capsys):
    progress = TerminalProgress()
    with progress.following({"a": 60.0}), progress.stage("training [x]", 60.0) as advance:
        advance(1, 2, "loss 1.0")
        progress.finish("a", "a is [bold]done")
    out, err = capsys.readouterr()
    assert out == ""
    assert "training [x]" in err
    assert "a is [bold]done" in err


@pytest.mark.parametrize(("no_colour", "styled"), [("", True), ("1", False)])
def test_no_color_leaves_no_style_on_a_terminal(monkeypatch, capsys, no_colour, styled):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    monkeypatch.setenv("NO_COLOR", no_colour)
    console().print(Text("Ship it", style="bold green"))
    assert ("\x1b[" in capsys.readouterr().out) is styled


def test_a_stage_that_takes_longer_than_expected_has_no_negative_time_left():
    progress = TerminalProgress()
    with progress.following({"a": 1.0}):
        assert notes(progress, 4, 5, 9) == ["about 0 ms left"] * 3


def test_the_time_left_falls_as_a_stage_goes_on():
    progress = TerminalProgress()
    with progress.following({"a": 20.0}):
        assert notes(progress, 0, 2, 4) == ["about 20 s left", "about 15 s left", "about 10 s left"]


def test_what_a_stage_took_is_not_counted_again_in_the_next_one():
    progress = TerminalProgress()
    with progress.following({"a": 20.0}):
        notes(progress, 4)
        progress._spent_s = progress._expected_s
        assert notes(progress, 0) == ["about 10 s left"]


def test_a_finished_candidate_has_no_time_left():
    progress = TerminalProgress()
    with progress.following({"a": 20.0, "b": 30.0}):
        progress.finish("a", "a is done")
        assert notes(progress, 0) == ["about 30 s left"]


def test_what_fails_inside_a_stage_still_ends_it():
    progress = TerminalProgress()
    with pytest.raises(ZeroDivisionError), progress.stage("stage", 1.0):
        raise ZeroDivisionError
    assert progress._bar.tasks == []


def test_a_stage_longer_than_a_quarter_of_a_minute_gets_a_line_where_there_is_no_terminal(capsys):
    progress = TerminalProgress()
    with progress.following({"a": 16.0}):
        for expected_s in (1.0, 16.0):
            with progress.stage(f"stage of {expected_s:g} s", expected_s):
                pass
    err = capsys.readouterr().err
    assert "stage of 16 s" in err
    assert "stage of 1 s" not in err


def test_the_silent_progress_says_nothing(capsys):
    with Silent().stage("stage", 100.0) as advance:
        advance(1, 2, "loss 1.0")
    Silent().finish("a", "a is done")
    assert capsys.readouterr() == ("", "")


def test_quiet_libraries_do_not_warn(capsys):
    import logging
    import warnings

    with warnings.catch_warnings():
        quiet_libraries()
        warnings.warn("something deprecated", FutureWarning, stacklevel=1)
        logging.getLogger("transformers.trainer").warning("a note")
        logging.getLogger("trl").info("a note")
    assert capsys.readouterr() == ("", "")
