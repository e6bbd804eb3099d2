"""Commands on rows of data: checked, edited, and written by models.

Invariant: each writes new files beside a manifest, never over a file.
"""
