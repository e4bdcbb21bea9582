"""The conversation at a terminal: turns, commands, and the loop that ties them to an engine."""
