"""Weights of candidates: found where they are stored, else made by one fit or the best trial on validation.

Invariant: a folder of weights is named by everything they depend on, and exists only when they are complete.
"""
