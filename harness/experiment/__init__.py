"""Experiments: from candidates to runs, and from runs to a report with a decision (see `main_job`).

Invariant: a second call computes nothing, and a failed candidate does not stop the others.
"""

# fmt: off
# isort: off
from harness.evaluation.stored_scores import suite_arm
from harness.experiment.analyse import decide_by
from harness.experiment.candidate_problems import sensitive_endpoints
from harness.experiment.candidate_result import plan_curve, study_of_session
from harness.experiment.candidate_weights import ensure_weights, stands_on
from harness.experiment.executors import describe_workers
from harness.experiment.run_verdicts import read_both_arms
from harness.experiment.main_job import (
    are_all_done, attempt, compare, judge_pairs, place_open, refuse_many, report_stored, run_all,
)
from harness.experiment.one_answer import SentPrompt, add_prompts, ask, find_sent_prompts
from harness.experiment.cost_estimates import Estimates
from harness.experiment.plan import in_order, make_plan
from harness.experiment.preparation import Scope, find_lm_eval_tasks, prepare_session
from harness.experiment.run_candidate import answer_all_items, find_stored_runs, rescore_run
from harness.experiment.run_remarks import (
    PlannedGrades, describe_rewards, describe_stored, estimate_power, first_line, list_plan_notes,
    plan_grades, recipe_warnings,
)
from harness.experiment.stored_rows import Reader, StoredRows, refuse_folds
# isort: on
# fmt: on
