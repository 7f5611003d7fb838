"""How do equals agree on numbers with nobody in charge? Pure: no socket, no clock, no file."""
