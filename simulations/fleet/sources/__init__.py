"""Where a fleet's data come from: some that Lepton's own dependencies carry, others in a folder that the user names."""
