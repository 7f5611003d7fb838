"""What ought to run where, which version, how many: the same at every node that sees the same. Pure."""
