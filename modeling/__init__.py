"""The mathematics of BLIP-2: tensors in, tensors out."""
