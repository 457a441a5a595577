# What kosmosg uses of sentencepiece, which carries no types of its own.
from collections.abc import Iterator, Sequence
from typing import BinaryIO

class SentencePieceProcessor:
    def LoadFromSerializedProto(self, serialized: bytes) -> bool: ...
    def serialized_model_proto(self) -> bytes: ...
    def encode(self, input: str, out_type: type[str]) -> list[str]: ...
    def decode_pieces(self, input: Sequence[str]) -> str: ...

class SentencePieceTrainer:
    @staticmethod
    def Train(
        *,
        sentence_iterator: Iterator[str],
        model_writer: BinaryIO,
        vocab_size: int,
        hard_vocab_limit: bool,
        normalization_rule_tsv: str,
        minloglevel: int,
    ) -> None: ...
