"""Questions about the methods that validation splits answer; no test image is read."""
