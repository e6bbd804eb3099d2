"""Rows that models write: preference pairs of a candidate's own answers, ranked by what the task values.

Invariant: nothing that is evaluated is asked here; a file of rows stands beside a manifest that says who
wrote them, by which weights, draws and scores.
"""
