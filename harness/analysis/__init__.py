"""Analysis of stored answers: paired comparisons, the gate's verdict on them, and the decision.

Invariant: pure; nothing is made, and no model is loaded. Others import a name from the module that defines
it; `comparison.py`, `gating.py` and `decision.py` are the three steps.
"""
