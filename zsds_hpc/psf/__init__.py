"""Floor 2: the point-spread function of an image: stars that show it, model, quality."""
