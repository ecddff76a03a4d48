"""The benchmark of a CUDA device: its command, its parts, the tests that it runs, its rows."""
