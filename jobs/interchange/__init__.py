"""Checkpoints in the formats of LAVIS, Hugging Face and Isthmus, read and written.

from jobs.interchange import Options, read

parts = read("lavis", Path("blip2_pretrained.pth"), Options(recipe="vit-g"))
"""

from jobs.interchange.formats import Format, Options, Parts, read, write

__all__ = ["Format", "Options", "Parts", "read", "write"]
