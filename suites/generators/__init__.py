"""One file a task: each holds the words and rules from which its items are made.

Invariant: nothing here is copied from a benchmark, and the same seed gives the same bytes.
"""
