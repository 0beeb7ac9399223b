"""What frozen features know: class means, classifiers and probes on them."""
