"""Advice next to a decision: the six scenarios, the textbook on each need, and measurements of both."""
