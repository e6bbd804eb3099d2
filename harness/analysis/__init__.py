"""Analysis of stored answers: paired comparisons, the gate's verdict on them, and the decision.

Invariant: pure; nothing is written and no model is loaded. Names are imported from the module that defines
them; `comparison.py`, `gate_verdict.py` and `decision.py` are the three steps.
"""
