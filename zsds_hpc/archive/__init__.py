"""Floor 3: everything that touches files and databases."""
