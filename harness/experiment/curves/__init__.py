"""Curves of a training: its score by the rows it was given, and by the steps it has made.

Invariant: each point is measured by the way of any other candidate, and found again where it is stored.
"""
