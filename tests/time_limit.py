"""Time limit of a test session: once it is over no test starts, and what is left is counted as not run."""

import time

import pytest

_STARTED = time.monotonic()


def pytest_addoption(parser):
    parser.addoption("--minutes", type=float, help="start no test after so many minutes; 0 starts none")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    """Report a test as not run where the time is over; otherwise leave it to pytest."""
    minutes = item.config.getoption("--minutes")
    if minutes is None or time.monotonic() - _STARTED < 60 * minutes:
        return None
    mark = [("not run", True)]
    report = pytest.TestReport(item.nodeid, item.location, {}, "passed", None, "call", user_properties=mark)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_report_teststatus(report):
    """Count a test that was not run apart from those that passed."""
    return ("not run", "-", "NOT RUN") if ("not run", True) in map(tuple, report.user_properties) else None
