"""What the fast code costs: each prints ratios that were taken within one run."""
