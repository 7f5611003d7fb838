"""The ways in which a fleet averages: each is what the machines of `gossip/` do, for all nodes at once."""
