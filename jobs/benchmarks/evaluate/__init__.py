"""The evaluation of a checkpoint beside Hugging Face's loop, and beside scoring pair by pair."""
