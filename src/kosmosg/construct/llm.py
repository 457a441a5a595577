"""Entities by a language model of the hub, held to the caption's own words."""

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from kosmosg.construct.entities import INSTRUCTION, TAG, EntityFinder, parse_tags
from kosmosg.data.mixture import seed_of
from kosmosg.errors import CheckpointError

Decoding: TypeAlias = Literal["greedy", "released"]

# The form that MPT-7B-Instruct and others were taught with, for models without a chat template.
_FORM = (
    "Below is an instruction that describes a task, paired with an input. Write a response that"
    " appropriately completes the request.\n\n### Instruction:\n{}\n\n### Input:\n{}\n\n"
    "### Response:\n"
)
_SEPARATORS = (",", ", ")


def llm_finder(
    directory: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    max_new_tokens: int,
    decoding: Decoding,
    seed: int,
) -> EntityFinder:
    """Return an instruction model of a directory as a finder.

    Whatever the model thinks, its answer is `tag, tag, ...` of words that follow one another in the
    caption: other tokens are not allowed.

    Args:
        decoding: `released` draws from the likeliest 50 tokens up to a probability of 0.95.
        seed: Of those draws, which otherwise depend on the captions of a call alone.

    Raises:
        CheckpointError: If the directory has no model or no tokenizer that ends a text.

    Source:
        Paper section 3.1, NUMERICS section 9. Deviation: the released converter lets the model say
        anything and drops what is not in the caption.
    """
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    if tokenizer.eos_token_id is None:
        raise CheckpointError(
            f"{directory}: its tokenizer has no eos_token; name one in its config"
        )
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, local_files_only=True, dtype=dtype, use_safetensors=True
    )
    model.eval().requires_grad_(False).to(device)
    pieces = texts_of(tokenizer)
    sampling = {"do_sample": False}
    if decoding == "released":
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 50, "top_p": 0.95}

    gpus = [device] if device.type == "cuda" else []

    def find(captions: Sequence[str]) -> list[list[str]]:
        prompts = [prompt_of(caption, tokenizer) for caption in captions]
        # A chat template has written the special tokens already.
        words = tokenizer(
            prompts,
            padding=True,
            return_tensors="pt",
            add_special_tokens=not tokenizer.chat_template,
            return_token_type_ids=False,
        ).to(device)
        length = words["input_ids"].shape[1]
        grammars = [Grammar(caption, pieces, tokenizer.eos_token_id) for caption in captions]

        def allowed(row: int, ids: torch.Tensor) -> list[int]:
            return grammars[row].allowed(ids[length:].tolist())

        with torch.random.fork_rng(gpus), torch.inference_mode():
            torch.manual_seed(seed_of(seed, *captions))
            ids = model.generate(
                **words,
                max_new_tokens=max_new_tokens,
                prefix_allowed_tokens_fn=allowed,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **sampling,
            )
        rows = ids[:, length:].tolist()
        answers = [grammar.text(row) for grammar, row in zip(grammars, rows, strict=True)]
        return [
            parse_tags(answer.split(","), caption)
            for answer, caption in zip(answers, captions, strict=True)
        ]

    return find


def prompt_of(caption: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the question about a caption as the model was taught to be asked."""
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": f"{INSTRUCTION}\n\nCaption: {caption}"}]
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
    return _FORM.format(INSTRUCTION, caption)


class Grammar:
    """Which tokens may follow, so that an answer lists words of one caption.

    Args:
        caption: Its runs of plain words, cut at punctuation, are where tags come from.
        pieces: The ids of the tokens that spell a text.
        eos_id: Of the token that ends an answer.
    """

    def __init__(self, caption: str, pieces: "Pieces", eos_id: int) -> None:
        self._pieces = pieces
        self._eos_id = eos_id
        runs = [match[0] for match in TAG.finditer(" ".join(caption.split()))]
        # What a tag may go on with, from each word on.
        self._starts = [run[word.start() :] for run in runs for word in re.finditer(r"\S+", run)]

    def text(self, ids: Sequence[int]) -> str:
        """Return what the ids of an answer spell, up to its end."""
        known = self._pieces.texts
        until = ids.index(self._eos_id) if self._eos_id in ids else len(ids)
        return "".join(known[one] for one in ids[:until] if one in known)

    def allowed(self, ids: Sequence[int]) -> list[int]:
        """Return the ids that may come after these; after the end, the end again."""
        if self._eos_id in ids:
            return [self._eos_id]
        said = self.text(ids)
        before, comma, tag = said.rpartition(",")
        del before
        goes_on = self._after(tag, first=not comma)
        found = {one for rest in goes_on for one in self._pieces.beginnings(rest)}
        if not said or not found or self._is_whole(tag):
            found.add(self._eos_id)
        return sorted(found)

    def _after(self, tag: str, *, first: bool) -> list[str]:
        """Return what may follow a tag that has been begun, as far as it can be foreseen."""
        word = tag.removeprefix(" ")
        rests = [start[len(word) :] for start in self._starts if start.startswith(word)]
        if not tag:  # a token may bring the space before a word, or leave it out
            spaced = [f" {rest}" for rest in rests]
            return [*rests, *spaced] if first else spaced
        return [*rests, *_SEPARATORS] if self._is_whole(tag) else rests

    def _is_whole(self, tag: str) -> bool:
        word = tag.removeprefix(" ")
        return bool(word) and any(
            start.startswith(word) and start[len(word) : len(word) + 1] in ("", " ")
            for start in self._starts
        )


class Pieces:
    """The texts of a vocabulary's tokens, and which tokens a text can begin with."""

    def __init__(self, texts: dict[int, str]) -> None:
        self.texts = texts
        self._longest = max(map(len, texts.values()), default=0)
        self._ids: dict[str, list[int]] = {}
        for one, text in texts.items():
            self._ids.setdefault(text, []).append(one)

    def beginnings(self, text: str) -> list[int]:
        """Return the ids of all tokens that spell a beginning of the text."""
        ends = range(1, min(len(text), self._longest) + 1)
        return [one for end in ends for one in self._ids.get(text[:end], ())]


@functools.cache
def texts_of(tokenizer: PreTrainedTokenizerBase) -> Pieces:
    """Return how each token of a tokenizer is spelled within a text.

    Tokens that spell nothing, or half a character, are left out: no answer needs them.
    """
    anchor = tokenizer.encode(",", add_special_tokens=False)[-1]
    decode: Callable[..., list[str]] = functools.partial(
        tokenizer.batch_decode, clean_up_tokenization_spaces=False
    )
    head = decode([[anchor]])[0]
    special = set(tokenizer.all_special_ids)
    ids = [one for one in range(len(tokenizer)) if one not in special]
    whole = decode([[anchor, one] for one in ids])  # after a comma, lest a leading space be cut
    texts = {one: text[len(head) :] for one, text in zip(ids, whole, strict=True)}
    return Pieces({one: text for one, text in texts.items() if text and "\ufffd" not in text})
