"""Machines: storage, Ray, DeepSpeed, checkpoints, run logs; knows nothing of BLIP-2."""
