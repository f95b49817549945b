"""Names of images and classes, and how messages speak of them."""

import unicodedata

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".gif",
    ".avif",
)
HIDDEN_PREFIXES = (".", "__MACOSX")
NOT_AN_IMAGE = "is not named like an image"
OUTSIDE = "lies outside the class folders"


def is_image_name(name: str) -> bool:
    """Whether a file name ends like an image, in upper or lower case."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def compose(name: str) -> str:
    """NFC: macOS stores é as two characters, most other systems as one."""
    return unicodedata.normalize("NFC", name)


def describe_error(error: Exception) -> str:
    """Why a file or folder cannot be used, to go behind its name."""
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return f"cannot be read ({(reason or type(error).__name__).lower()})"
