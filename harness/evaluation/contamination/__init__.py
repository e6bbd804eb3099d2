"""Contamination: training rows that are evaluated too, and items that the base has seen before.

Invariant: it is looked for before anything is trained, on the rows as they are read.
"""
