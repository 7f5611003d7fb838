"""Services: small programs that the mesh hosts, calls by name, scales, updates and keeps alive."""
