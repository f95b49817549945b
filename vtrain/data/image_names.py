"""Names of images and classes, and how messages speak of them."""

import unicodedata
from importlib.util import find_spec

# Decoders that Pillow lacks, by the extra that brings them: package, module and suffixes.
EXTRAS = {
    "heif": ("pillow-heif", "pillow_heif", (".heic", ".heif", ".hif")),
    "jxl": ("pillow-jxl-plugin", "pillow_jxl", (".jxl",)),
}
INSTALLED_EXTRAS = tuple(name for name, (_, module, _) in EXTRAS.items() if find_spec(module))
IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".apng",
    ".webp",
    ".bmp",
    ".dib",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".gif",
    ".avif",
    *(suffix for extra in INSTALLED_EXTRAS for suffix in EXTRAS[extra][2]),
)
HIDDEN_PREFIXES = (".", "__MACOSX")
# What systems, disks and programs leave behind, in lower case: none can be meant as a class.
SYSTEM_NAMES = frozenset(
    (
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "found.000",
        "@eadir",  # Synology
        "#recycle",
        "#snapshot",
        "@tmp",
        "@recycle",  # QNAP
        "@recently-snapshot",
        "network trash folder",
        "temporary items",
        "__pycache__",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
    )
)
NOT_AN_IMAGE = "is not named like an image"
OUTSIDE = "lies outside the class folders"
BACKSLASHES = "has backslashes in its name, where an archive had folders"


def is_image_name(name: str) -> bool:
    """Whether a file name ends like an image, in upper or lower case."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_hidden(name: str) -> bool:
    """Whether a file or folder does not exist for a scan."""
    return name.startswith(HIDDEN_PREFIXES) or name.lower() in SYSTEM_NAMES


def compose(name: str) -> str:
    """NFC: macOS stores é as two characters, most other systems as one."""
    return unicodedata.normalize("NFC", name)


def describe_error(error: Exception) -> str:
    """Why a file or folder cannot be used, to go behind its name."""
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return f"cannot be read ({(reason or type(error).__name__).lower()})"
