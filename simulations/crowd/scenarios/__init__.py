"""Crowds that ship with Lepton."""
