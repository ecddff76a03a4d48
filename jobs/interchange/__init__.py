"""Checkpoints in the formats of LAVIS, Hugging Face and Isthmus, read and written."""
