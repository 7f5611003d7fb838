"""Lepton: the devices that people already have, as one AI, with no server in the middle."""
