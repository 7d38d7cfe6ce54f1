"""Simulated STEM micrographs with exact truth: the embedded default data set."""
