"""Floor 1: robust statistics, polynomials, convolution and least squares."""
