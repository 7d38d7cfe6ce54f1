"""Notebooks 02 and 03: statistics of labelled defects, and masks simulated from them."""
