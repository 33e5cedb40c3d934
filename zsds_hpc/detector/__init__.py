"""Floor 2: from raw counts to a detrended, masked image."""
