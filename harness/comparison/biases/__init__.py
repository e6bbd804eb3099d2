"""Biases of judges beside people: what a metric favours that they do not."""
