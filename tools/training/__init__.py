"""Training of the suite's classifiers: simulated differences, labels, a small network trainer, ROC curves."""
