"""Reference images: which epochs, resampling onto a fixed footprint, combination."""
