"""Feedback from production: what users say of answers, and how requests drift.

Invariant: logs are imported, nothing is served here. Texts are masked before anything is written.
"""

from harness.lifecycle.corrections import FeedbackEdit, make_pairs, make_rows, make_test_items
from harness.lifecycle.drift import compare_samples, drift_document, find_drift, monitor, summarize
from harness.lifecycle.feedback import add_feedback, describe_added
from harness.lifecycle.thumbs import compare_thumbs, describe_thumbs
