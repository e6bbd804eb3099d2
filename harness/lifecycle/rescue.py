"""Forgetting mitigation search for a fine-tune that gains and forgets too much, cheapest trial first.

Invariant: a trial is a candidate like any other, with its own recipe, run, rows and verdict. It is
chosen on one half of the suites' items and judged on the other.
"""

from harness.lifecycle.rescue_result import (
    HalfVerdict,
    Rescue,
    TrialResult,
    exit_code,
    read,
    report_files,
    rescue_document,
    to_json,
    write,
)
from harness.lifecycle.rescue_search import PreparedRescue, prepare, prepare_from_report, run
from harness.lifecycle.rescue_trials import largest_work, plan_document
