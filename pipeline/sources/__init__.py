"""Sources of image-text pairs, a file for each format."""
