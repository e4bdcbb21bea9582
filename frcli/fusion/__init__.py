"""Policies: how rows of logits of several models become one."""
