"""Slash commands: functions from a session and the words behind the command to a reply, a file for each kind."""
