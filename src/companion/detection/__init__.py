"""Stage 6: Mask R-CNN, its training recipes and its predictions."""
