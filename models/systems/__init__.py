"""The published systems, one file for each."""
