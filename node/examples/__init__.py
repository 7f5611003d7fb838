"""Applications that run: real nodes on this machine, real data, each a story with its baselines."""
