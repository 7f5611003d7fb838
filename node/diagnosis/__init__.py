"""Saying what hinders a device: facts are collected (`collecting.py`), and rules read findings out of them."""
