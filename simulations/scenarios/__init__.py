"""Scenarios that ship, as data."""
