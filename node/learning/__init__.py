"""Learning: tasks, the local trainer and its checkpoints."""
