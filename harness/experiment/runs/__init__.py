"""Runs: one candidate and seed each, made or found, and what its stored rows say by themselves.

Invariant: nothing here compares two candidates.
"""
