"""Floor 2: matching to a reference catalogue, the TPV solution and its verification."""
