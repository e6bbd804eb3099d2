"""Proposals of parameters, each tried by a training and judged on validation.

Invariant: nothing here trains; what was found of one proposal is given back before the next is asked for.
"""
