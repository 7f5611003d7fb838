"""What a node lets its owner see: logs with one id for each request, figures, health, load, an audit log, traces."""
