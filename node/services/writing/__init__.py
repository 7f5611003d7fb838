"""What the author of a service writes: its class read as data, its values on their way, both in words."""
