"""Image differencing, candidates, vetting and streaks."""
