"""Rows that models write: preference pairs of a candidate's own answers, ranked by what the task values.

Invariant: nothing that is evaluated is sent here; a file of rows stands beside a manifest that says who
wrote them, by which weights, draws and scores.
"""

from harness.experiment.generated_rows.distilled_rows import Distillation, distill_rows, plan_distillation
from harness.experiment.generated_rows.preference_pairs import Drawing, make_pairs
from harness.experiment.generated_rows.proposed_prompts import (
    PromptProposal,
    plan_proposals,
    propose_prompts,
    recipe_text,
)
from harness.experiment.generated_rows.writers import Writer, candidate_writer, endpoint_writer
