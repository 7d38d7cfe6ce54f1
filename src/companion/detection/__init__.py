"""Notebook 06: Mask R-CNN, the training batches of each arm, and predictions."""
