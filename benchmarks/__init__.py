"""What the fast code costs, as ratios against the textbook forms in :mod:`benchmarks.reference`."""
