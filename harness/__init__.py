"""Know, with evidence, whether to fine-tune."""

__version__ = "0.1.0"
