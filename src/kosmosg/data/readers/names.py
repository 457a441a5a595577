"""Keys of records, made of names that other people gave."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

MAX_LENGTH = 96

_OTHER = re.compile(r"[^A-Za-z0-9_\-]+")


def key_of(*names: str | int) -> str:
    """Return a key that `tars.check_key` passes: the names, joined by `/`.

    Names that hold other characters, or are long, lose those and get a piece of their hash
    instead, so that different names stay different.

    Example:
        >>> key_of("00000", "000000012"), key_of("my dog.jpg")
        ('00000/000000012', 'my_dog_jpg-1d626f87da')
    """
    name = "/".join(str(name) for name in names)
    parts = [_OTHER.sub("_", part) or "_" for part in name.split("/")]
    key = "/".join(parts)
    if key == name and len(key) <= MAX_LENGTH:
        return key
    # File names may be any bytes, and JSON may spell half a surrogate pair.
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{key[:MAX_LENGTH].rstrip('/')}-{digest}"


def stems(files: Sequence[Path], root: Path) -> dict[Path, str]:
    """Return a short name for each file: its path below the root, without suffixes if that will do.

    Example:
        >>> list(stems([Path("d/a.tar"), Path("d/b.tsv"), Path("d/b.tsv.gz")], Path("d")).values())
        ['a', 'b.tsv', 'b.tsv.gz']
    """
    whole = {file: file.relative_to(root).as_posix() for file in files}
    short = {
        file: (file.parent / file.name.partition(".")[0]).relative_to(root).as_posix()
        for file in files
    }
    counts = Counter(short.values())
    return {file: short[file] if counts[short[file]] == 1 else whole[file] for file in files}
