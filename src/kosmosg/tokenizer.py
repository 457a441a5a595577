"""Words to ids: SentencePiece pieces looked up in the model's own dictionary."""

import hashlib
import io
import string
import struct
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from kosmosg.errors import CheckpointError, PromptError

MODEL_FILE = "sentencepiece.bpe.model"
DICTIONARY_FILE = "dict.txt"
FIRST_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
LAST_SYMBOLS = ("<mask>", "</doc>", "<image>", "</image>", "</chunk>", "</line>")
SPACE = "\u2581"
BLANKS = "\t\n\r\u00a0\u2028\u3000"


class Tokenizer:
    """Turns text into ids and back.

    SentencePiece only cuts the text; the ids are those of the dictionary file, which has another
    order. A special symbol written in the text (`<image>`) is text like any other.

    Args:
        pieces: Cuts text into pieces.
        symbols: The dictionary's pieces in file order, without the special symbols around them.

    Source:
        NUMERICS section 1: `<s> <pad> </s> <unk>`, the lines of dict.txt, then six more symbols.
    """

    bos_id = 0
    pad_id = 1
    eos_id = 2
    unk_id = 3

    def __init__(self, pieces: SentencePieceProcessor, symbols: Sequence[str]) -> None:
        self._processor = pieces
        self._symbols = (*FIRST_SYMBOLS, *symbols, *LAST_SYMBOLS)
        # Of the dictionary's own symbols only: an unknown piece may spell a special one.
        self._ids = {symbol: index for index, symbol in enumerate(symbols, len(FIRST_SYMBOLS))}
        if len(self._ids) != len(symbols):
            raise CheckpointError(
                f"{DICTIONARY_FILE} holds {len(symbols) - len(self._ids)} repeated symbols; "
                "fetch the file again"
            )
        self.vocab_size = len(self._symbols)
        self.image_id = self._symbols.index("<image>")
        self.end_image_id = self._symbols.index("</image>")

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "Tokenizer":
        """Return the tokenizer of a directory with `sentencepiece.bpe.model` and `dict.txt`.

        Raises:
            CheckpointError: If a file is missing or is not what its name says.
        """
        directory = Path(directory)
        for name in (MODEL_FILE, DICTIONARY_FILE):
            if not (directory / name).is_file():
                raise CheckpointError(
                    f"no tokenizer in {directory}: {name} is missing; "
                    "name the directory that holds both tokenizer files"
                )
        # Only "\n" ends a line: other line separators of Unicode are pieces of the dictionary.
        lines = (directory / DICTIONARY_FILE).read_text(encoding="utf-8").split("\n")
        return cls(
            _processor((directory / MODEL_FILE).read_bytes(), directory / MODEL_FILE),
            [line.rpartition(" ")[0] for line in lines if line],
        )

    @classmethod
    def from_words(cls, words: Iterable[str]) -> "Tokenizer":
        """Return a tokenizer that knows these words and punctuation marks whole, and no others.

        Capital letters are read as small ones, so the words must be given in small letters.
        """
        words = list(dict.fromkeys(words))
        marks = [word for word in words if not word[0].isalnum()]
        symbols = [*(SPACE + word for word in words if word[0].isalnum()), *marks, SPACE]
        return cls(_processor(_unigram_model(symbols), Path(MODEL_FILE)), symbols)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the two files that `from_pretrained` reads."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        symbols = self._symbols[len(FIRST_SYMBOLS) : -len(LAST_SYMBOLS)]
        (directory / MODEL_FILE).write_bytes(self._processor.serialized_model_proto())
        (directory / DICTIONARY_FILE).write_text(
            "\n".join(f"{symbol} 1" for symbol in symbols), encoding="utf-8"
        )

    def sha256(self) -> str:
        """Return a sum of all that decides which ids a text has."""
        total = hashlib.sha256(self._processor.serialized_model_proto())
        total.update("\n".join(self._symbols).encode())
        return total.hexdigest()

    def pieces(self, text: str) -> list[str]:
        """Return the pieces that `text` is cut into, known or not.

        Raises:
            PromptError: If it holds half a character (a lone surrogate), which no text can.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(
                f"character {error.start + 1} of {text[:60]!r} is half a character "
                f"(U+{ord(text[error.start]):04X}); give the text as UTF-8"
            ) from None
        return self._processor.encode(text, out_type=str)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without `<s>` or `</s>`; text of only spaces has none."""
        return [self._ids.get(piece, self.unk_id) for piece in self.pieces(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; special symbols other than `<unk>` leave no trace.

        Raises:
            ValueError: If an id is outside the vocabulary.
        """
        pieces: list[str] = []
        last = self.vocab_size - len(LAST_SYMBOLS)
        for index in ids:
            if not 0 <= index < self.vocab_size:
                raise ValueError(f"id {index} is outside the vocabulary of {self.vocab_size}")
            if self.unk_id <= index < last:
                pieces.append(self._symbols[index])
        return self._processor.decode_pieces(pieces)

    def symbol(self, index: int) -> str:
        """Return how the dictionary writes one id."""
        return self._symbols[index]

    def unknown_words(self, text: str) -> list[str]:
        """Return the words of `text` of which some part is not in the dictionary, each once."""
        return [word for word in dict.fromkeys(text.split()) if self.unk_id in self.encode(word)]


def _processor(model: bytes, path: Path) -> SentencePieceProcessor:
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise CheckpointError(f"{path} is not a SentencePiece model; fetch it again") from error
    return processor


def _unigram_model(symbols: Sequence[str]) -> bytes:
    """Return a SentencePiece unigram model in which every symbol is equally likely.

    Written by hand, since the trainer chooses its own pieces. Equal scores make the cut with the
    fewest pieces win, so a known word is never cut.
    """
    normal, unknown, control, unigram = 1, 2, 3, 1
    score = b"\x15" + struct.pack("<f", -1.0)
    rows = [("<unk>", unknown), ("<s>", control), ("</s>", control)]
    rows += [(symbol, normal) for symbol in symbols]
    pieces = (_field(1, _field(1, name.encode()) + score + _field(3, kind)) for name, kind in rows)
    return (
        b"".join(pieces)
        + _field(2, _field(3, unigram))
        + _field(3, _field(1, b"small_letters") + _field(2, _small_letters()))
    )


def _small_letters() -> bytes:
    """Return the compiled rule that reads capital letters as small ones, and blanks as spaces."""
    trained = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        rules.writelines(f"{ord(c):X}\t{ord(c.lower()):X}\n" for c in string.ascii_uppercase)
        rules.writelines(f"{ord(c):X}\t20\n" for c in BLANKS)
        rules.flush()
        SentencePieceTrainer.Train(
            sentence_iterator=iter(["a b c"]),
            model_writer=trained,
            vocab_size=8,
            hard_vocab_limit=False,
            normalization_rule_tsv=rules.name,
            minloglevel=2,
        )
    normalizer = _fields(trained.getvalue())[3]
    return _fields(normalizer)[2]


def _field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _fields(message: bytes) -> dict[int, bytes]:
    """Return the last length-delimited value of each field of a protobuf message."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        if key & 7 == 5:
            at += 4
            continue
        size, at = _read_varint(message, at)
        if key & 7 == 2:
            found[key >> 3] = message[at : at + size]
            at += size
    return found


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
