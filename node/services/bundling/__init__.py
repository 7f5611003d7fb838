"""A service as a file: its folder, its bundle, who vouches for it, who admits it, and what its code needs installed."""
