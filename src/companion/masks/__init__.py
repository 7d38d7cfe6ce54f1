"""Stages 2 and 3: statistics of labelled defects, and masks simulated from them."""
