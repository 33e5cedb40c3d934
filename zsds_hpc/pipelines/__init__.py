"""Floor 4: one thin module for each pipeline of the survey."""
