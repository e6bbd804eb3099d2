"""Sensitive rows: what forbids to send them to somebody else's server, as `decide.needs` declares."""

from collections.abc import Iterator

from harness.errors import Problem
from harness.models import openai_api
from harness.spec import Experiment


def sensitive_problems(
    experiment: Experiment, settings: openai_api.Settings, name: str, where: str, step: str
) -> Iterator[Problem]:
    """Yield what forbids to send rows to an endpoint: sensitive data, and somebody else's server."""
    if "sensitive_data" in experiment.decide.needs and settings.leaves_machine:
        found = f"{name} on somebody else's server, {settings.name}"
        expected = "sensitive data to stay here, as decide.needs: [sensitive_data] says"
        yield Problem(where, found, expected, step)
