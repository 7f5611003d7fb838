"""The processes that run services: started, watched, asked over local sockets, on both sides of these."""
