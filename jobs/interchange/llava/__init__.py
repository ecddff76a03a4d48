"""LLaVA's checkpoints of other projects: Hugging Face folders, the authors' files, deltas."""
