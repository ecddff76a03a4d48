"""Image encoders: the families, their weights' names, the tokens that are taken."""
