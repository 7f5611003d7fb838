"""Models that torch can export: traced once, then split and served as a list of plain operations."""
