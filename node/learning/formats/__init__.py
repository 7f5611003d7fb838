"""The kinds of files that a node learns from, each read in a file of its own."""
