"""Floor 5: running nights: units, jobs, resume, status, and the command line."""
