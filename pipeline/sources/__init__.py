"""Where image-text pairs come from, one file per format."""
