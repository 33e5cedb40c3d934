"""What several tests share: a small camera, raw files written by astropy alone, and a toy pipeline."""
