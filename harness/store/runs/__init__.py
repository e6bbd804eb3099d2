"""Runs in a store: those of candidates, and apart from them those of the trials of sweeps and searches."""
