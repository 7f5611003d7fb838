"""Calls between two nodes: machines (``caller``, ``callee``) and the shells that drive them."""
