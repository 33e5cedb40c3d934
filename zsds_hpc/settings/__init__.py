"""Floor 3: declared, checked settings read from YAML."""
