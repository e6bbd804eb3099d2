"""Edits of rows, with the outcome of each row: clean, dedup, split, mix, sample, augment.

Invariant: every row that is read is either written or dropped. Changes have a reason, and rows added by a
model are marked and name their original. The same rows, parameters and seed give the same bytes.
"""
