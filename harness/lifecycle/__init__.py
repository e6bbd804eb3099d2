"""Stages after a comparison: release and champions, feedback from production, nightly runs.

Invariant: each stage is a loop around a plan and its analysis.
"""
