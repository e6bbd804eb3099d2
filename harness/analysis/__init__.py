"""Analysis of stored answers: paired comparisons, the gate's verdict on them, and the decision.

Invariant: pure; nothing is made, and no model is loaded. `comparison`, `gating` and `decision` are
what others import; the other modules hold their parts.
"""
