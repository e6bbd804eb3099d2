"""Advice beside a decision: the six scenarios, the textbook on each need, and what was measured of both."""
