"""Real classes of the hub at toy size, saved as the hub's directories are."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessorPil,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedTokenizerFast,
    ViTImageProcessorPil,
)

SIDE = 16
MERGES = ("d o", "do g", "\u0120 do", "\u0120do g", "h a", "ha t", "\u0120 ha", "\u0120ha t")


def hub_tokenizer(**more: object) -> PreTrainedTokenizerFast:
    """Bytes, and a few words whole, with and without the space before them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = ["<pad>", "</s>", *alphabet, *(pair.replace(" ", "") for pair in MERGES)]
    merges = [tuple(pair.split()) for pair in MERGES]
    bytewise = Tokenizer(
        models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=merges)
    )
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bytewise, bos_token="</s>", eos_token="</s>", pad_token="<pad>", **more
    )


def save_llm(directory: Path, *, kind: str = "mpt", chat: bool = False) -> Path:
    tokenizer = hub_tokenizer()
    if chat:
        tokenizer.chat_template = (
            "{% for message in messages %}<{{ message.role }}> {{ message.content }}\n{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}"
        )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = _mpt(len(tokenizer)) if kind == "mpt" else _llama(len(tokenizer))
        model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _mpt(size: int) -> MptForCausalLM:
    return MptForCausalLM(
        MptConfig(d_model=16, n_heads=2, n_layers=1, vocab_size=size, max_seq_len=2048)
    )


def _llama(size: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            bos_token_id=1,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def save_blip2(directory: Path, *, num_queries: int = 3) -> Path:
    processor = Blip2Processor(
        BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}),
        hub_tokenizer(),
        num_query_tokens=num_queries,
    )
    size = len(processor.tokenizer)
    config = Blip2Config(
        vision_config={**_WIDTHS, "image_size": SIDE, "patch_size": 8},
        qformer_config={**_WIDTHS, "vocab_size": 8, "encoder_hidden_size": 16},
        text_config={
            "model_type": "opt",
            "vocab_size": size,
            "hidden_size": 16,
            "ffn_dim": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 16,
            "bos_token_id": 1,
            "eos_token_id": 1,
            "pad_token_id": 0,
        },
        num_query_tokens=num_queries,
        image_token_index=size - 1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = Blip2ForConditionalGeneration(config)
        with torch.no_grad():  # random weights of the usual size would say the same of everything
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.normal_(std=0.5)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def save_clipseg(directory: Path) -> Path:
    tokenizer = hub_tokenizer()
    _clipseg(len(tokenizer), end=1).save_pretrained(directory)
    CLIPSegProcessor(
        ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}), tokenizer
    ).save_pretrained(directory)
    return directory


def save_own_clipseg(directory: Path, vocab_size: int) -> Path:
    """One that reads our tokenizer, which lies beside it."""
    _clipseg(vocab_size + 1, end=vocab_size).save_pretrained(directory)
    return directory


_WIDTHS = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def _clipseg(size: int, *, end: int) -> CLIPSegForImageSegmentation:
    config = CLIPSegConfig(
        text_config={
            **_WIDTHS,
            "vocab_size": size,
            "max_position_embeddings": 24,
            "bos_token_id": 0,
            "eos_token_id": end,
            "pad_token_id": end,
        },
        vision_config={**_WIDTHS, "image_size": SIDE, "patch_size": 4},
        projection_dim=16,
        reduce_dim=8,
        extract_layers=[0, 1],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = CLIPSegForImageSegmentation(config)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.normal_(std=0.3)
        return model
