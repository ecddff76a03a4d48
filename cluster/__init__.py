"""Machines: storage, Ray, DeepSpeed, checkpoints and run logs; nothing here knows BLIP-2."""
