"""Contamination: training rows that are evaluated too, and items that the base has seen before.

Invariant: it is looked for before anything is trained, on the rows as they are read.
"""

from harness.evaluation.contamination.membership import ITEMS, NO_PROOF, Gap, Membership, measure_membership
from harness.evaluation.contamination.training_overlap import refuse_or_note
