"""The command line: one file for each command, thin; everything that is drawn is in ``ui.py``."""
