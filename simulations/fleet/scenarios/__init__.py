"""Learning scenarios that ship with Lepton, as TOML files."""
