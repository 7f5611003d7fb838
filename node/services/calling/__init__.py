"""A call from the caller to a host: which replica, how often, what is asked twice, and what came of it."""
