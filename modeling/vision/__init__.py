"""Image encoders: families of towers, names of their weights, choice of their tokens."""
