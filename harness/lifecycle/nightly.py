"""Nightly regression test: champions and named candidates re-evaluated, with the base as the control arm.

Invariant: an alarm is raised once and stays until it is acknowledged; an unchanged candidate raises one
with a chance of at most `nightly.alpha`, however many nights are evaluated.
"""

from harness.lifecycle.night import acknowledge, run_night, run_prepared, send, status
from harness.lifecycle.nightly_alarm import NightReport, night_document, refuse_webhook, to_json, write
from harness.lifecycle.nightly_state import Alarm, Night, State, home, read_nights, read_state, references
