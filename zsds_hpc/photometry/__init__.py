"""Floor 2: background, detection, aperture photometry and zero points."""
