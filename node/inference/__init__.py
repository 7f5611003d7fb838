"""Answering: stages, sessions and who serves what."""
