"""What comes from outside, held to its limits: files, options, weights."""
