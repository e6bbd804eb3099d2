"""Stages after a comparison: release and champions, feedback from production, rescue, nights.

Invariant: each is a loop around a plan and its analysis.
"""
