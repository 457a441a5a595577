"""Our numbers beside the released code's: every case of a folder of golden data."""

from kosmosg.verify.compare import Check
from kosmosg.verify.folder import check_file, files
from kosmosg.verify.golden import Golden

__all__ = ["Check", "Golden", "check_file", "files"]
