"""Time limit of a test session: at its end no test starts and the running one ends; both count as not run."""

import contextlib
import signal
import time

import pytest

_STARTED = time.monotonic()
_AGAIN_S = 5.0
_MARK = ("not run", True)


class TimeIsOver(BaseException):
    """The end of a session's time; no `except Exception` of the tested code takes it for a failure."""


def pytest_addoption(parser):
    parser.addoption("--minutes", type=float, help="let tests run for so many minutes; 0 starts none")


def _measure_left_s(config):
    """Return the seconds left; None without a limit."""
    minutes = config.getoption("--minutes")
    return None if minutes is None else 60 * minutes - (time.monotonic() - _STARTED)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    """Report a test as not run after the end of the time; otherwise leave it to pytest."""
    left_s = _measure_left_s(item.config)
    if left_s is None or left_s > 0:
        return None
    report = pytest.TestReport(
        item.nodeid, item.location, {}, "passed", None, "call", user_properties=[_MARK]
    )
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _end(*_):
    raise TimeIsOver


@contextlib.contextmanager
def _timer(config):
    """Raise `TimeIsOver` at the end of the time, and again as long as something catches it.

    Any error that then ends the test is raised as a skip from here: pytest cannot always show a traceback
    that ends in the middle of a call.
    """
    left_s = _measure_left_s(config)
    if left_s is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_REAL, max(left_s, 1e-3), _AGAIN_S)
    try:
        yield
    except (Exception, KeyboardInterrupt, TimeIsOver):
        signal.setitimer(signal.ITIMER_REAL, 0)
        if _measure_left_s(config) > 0:
            raise
        raise pytest.skip.Exception("the time is over") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item):
    with _timer(item.config):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item):
    with _timer(item.config):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Count a failure after the end of the time as a test that was not run."""
    report = yield
    left_s = _measure_left_s(item.config)
    if not report.passed and left_s is not None and left_s <= 0:
        report.outcome, report.longrepr = "skipped", None
        report.user_properties.append(_MARK)
    return report


def pytest_report_teststatus(report):
    """Count tests that were not run separately from those that passed."""
    return (
        ("not run", "-", "NOT RUN") if _MARK in map(tuple, getattr(report, "user_properties", ())) else None
    )
