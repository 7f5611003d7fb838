"""Content-addressed bytes of any size: kept in a folder, read out of an owner's own files, fetched from peers."""
