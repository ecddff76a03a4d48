"""The mathematics of BLIP-2: tensors in, tensors out.

A tensor's name ends in its shape, a character a dimension; a digit is a fixed size. The legend,
from which a file deviates only where it says so:

    B   samples of this rank (its batch or micro-batch)
    W   samples of all ranks, rank by rank
    R   image-text pairs; an image or a text may be in several
    P   image tokens: class token and registers, then patches
    Q   query tokens
    L   text tokens
    S   tokens of a sequence, queries or visual prompts first: Q + L
    N   tokens that are picked out of a batch, such as targets
    D   width of the hidden states
    E   width of the embedding that images and texts share
    H   attention heads
    K   width of one head
    V   vocabulary
    3HW an image: channels, height, width

So `image_feats_BQE` holds one embedding for each sample and query.
"""
