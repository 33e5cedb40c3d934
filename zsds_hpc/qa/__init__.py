"""Floor 2: quality metrics, thresholds and figures."""
