"""What do ten, or a thousand, such devices do together? Drives the deployed machines on virtual time."""
