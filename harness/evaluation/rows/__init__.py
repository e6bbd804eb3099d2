"""Rows of a run: which items they are of, the identity that names their folder, and several answers to one.

Invariant: an identity holds what its rows depend on, and nothing else.
"""
