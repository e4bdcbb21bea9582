"""Batch files: many prompts in, as many answers out."""
