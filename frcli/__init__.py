"""Several specialist language models on one laptop write one answer together."""

__version__ = "0.1.0"
