"""Training on preferences: pairs of a chosen and a rejected answer, thumbs, and reward models.

Invariant: a share of the rows is held out, which no training here sees.
"""
