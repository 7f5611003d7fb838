"""What people see of learning runs: a table, one page that works offline, pictures, and files for other programs."""
