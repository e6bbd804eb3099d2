"""Families of adapters: what some of them cannot do, and how some are saved."""
