"""The authors' released checkpoints to ours, and back, without executing anything in them."""

from kosmosg.convert.conversion import convert
from kosmosg.convert.names import NAMES, our_name, their_name
from kosmosg.convert.original import to_original
from kosmosg.convert.sizes import Architecture

__all__ = ["NAMES", "Architecture", "convert", "our_name", "their_name", "to_original"]
