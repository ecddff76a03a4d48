"""Instruction tuning's data (InstructBLIP): templates, samples, and the mix of many data sets."""
