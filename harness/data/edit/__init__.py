"""Edits of rows, each from rows to rows and what became of each: clean, dedup, split, mix, sample, augment.

Invariant: what is written and what is dropped are together all that was read; a row may be changed, with the
reason, and one that a model adds says so and names the row that it was made from. The same rows, parameters
and seed give the same bytes.
"""
