"""File names: which are images or texts, which are hidden, and which are not safe to use."""

from pipeline.text import has_lone_surrogate

MEMBER_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
"""Suffixes of images in tars that the field's readers know."""
IMAGE_SUFFIXES = (*MEMBER_SUFFIXES, "jpe", "jfif", "mpo", "apng", "avifs")
"""Suffixes of the image files that the decoder takes, in lower case, without the dot."""
TEXT_SUFFIXES = ("txt", "caption", "text")
"""Suffixes of a tar's members that hold a caption."""
_SYSTEM_FOLDERS = ("__macosx", "@eadir", "$recycle.bin", "system volume information")
_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")


def is_hidden(name: str) -> bool:
    """Whether a file is not the user's own but a file system's or a tool's.

    Args:
        name: a path with slashes, relative to the folder that was given or as a tar has it.

    Returns:
        True for a file or folder whose name starts with a dot (macOS's ``._1.jpg``,
        ``.DS_Store``), for what is in ``__MACOSX`` and the like, for ``Thumbs.db`` and the like.

    >>> [is_hidden(name) for name in ("a/._1.jpg", "__MACOSX/1.jpg", "./1.jpg", "../1.jpg")]
    [True, True, False, False]
    """
    *folders, base = name.lower().split("/")
    dotted = any(part.startswith(".") and part not in (".", "..") for part in (*folders, base))
    return dotted or base in _SYSTEM_FILES or any(part in _SYSTEM_FOLDERS for part in folders)


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image (``IMAGE_SUFFIXES``, in any case), not hidden."""
    return name.rpartition(".")[2].lower() in IMAGE_SUFFIXES and not is_hidden(name)


def member_suffix(suffix: str) -> str:
    """The suffix under which an image file goes into a tar: its own where readers know it."""
    suffix = suffix.lower().removeprefix(".")
    return suffix if suffix in MEMBER_SUFFIXES else "jpg"


def is_unsafe(name: str) -> bool:
    """Absolute, leaving its folder, not UTF-8, or with control characters."""
    return (
        name.rpartition("/")[2] in ("", ".")
        or name.startswith("/")
        or "\\" in name
        or ".." in name.split("/")
        or any(ord(character) < 32 for character in name)
        or has_lone_surrogate(name)
    )
