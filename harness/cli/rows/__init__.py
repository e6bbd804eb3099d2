"""Commands by which models write rows to train on.

Invariant: each writes a new file beside its manifest, never over a file.
"""
