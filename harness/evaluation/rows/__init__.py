"""Rows of a run: their items, the identity that names their folder, and several answers to one item.

Invariant: an identity holds exactly what its rows depend on.
"""
