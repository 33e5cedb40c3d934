"""Tools around the suite: the sky simulator and the builders of its configuration."""
