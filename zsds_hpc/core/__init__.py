"""Floor 0: identifiers, names, mask bits, states, errors and parameter declarations. No I/O."""
