"""What does one device do? Models, shards, learning, the command line and the embedding API."""
