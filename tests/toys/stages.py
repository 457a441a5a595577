"""The parts that the paper's stages need, at toy size."""

import copy
import functools
from dataclasses import dataclass, replace

import torch
from transformers import CLIPTextConfig, CLIPTextModel

from kosmosg.data.compose import Composing
from kosmosg.data.records import Caption, Document, Edit, Entity, Example
from kosmosg.model.alignernet import AlignerNet
from kosmosg.model.image_decoder import ImageDecoder
from kosmosg.model.kosmosg import KosmosG
from kosmosg.tokenizer import Tokenizer
from kosmosg.train.shapes import Sizes
from kosmosg.train.stage2_align import TextTower
from toys.model import EMBED_DIM, NUM_QUERIES, SIZE, toy_picture, toy_pipeline


@dataclass(frozen=True)
class Toys:
    model: KosmosG
    tokenizer: Tokenizer
    text_tower: TextTower
    image_decoder: ImageDecoder


def toys(*, dropout: float = 0.0) -> Toys:
    """Kosmos-G with N, a text tower and an image decoder, the same each time."""
    made = _toys()
    model = copy.deepcopy(made.model)
    for module in model.mllm.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return replace(made, model=model, image_decoder=copy.deepcopy(made.image_decoder))


@functools.cache
def _toys() -> Toys:
    pipeline = toy_pipeline()
    tokenizer = pipeline.tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(1)
        aligner = AlignerNet(
            hidden_size=32,
            embed_dim=EMBED_DIM,
            intermediate_size=32,
            num_heads=2,
            num_layers=1,
            num_queries=NUM_QUERIES,
            max_positions=64,
            with_reconstruction=True,
        )
        config = CLIPTextConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=EMBED_DIM,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=NUM_QUERIES,
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=1,
        )
        encoder = CLIPTextModel(config)

    def ids(texts):
        rows = [tokenizer.encode(text)[:NUM_QUERIES] for text in texts]
        return torch.tensor([row + [1] * (NUM_QUERIES - len(row)) for row in rows])

    return Toys(
        model=KosmosG(pipeline.mllm, aligner),
        tokenizer=tokenizer,
        text_tower=TextTower(encoder=encoder, ids=ids),
        image_decoder=ImageDecoder(pipeline.vae, pipeline.unet),
    )


def toy_sizes(toy: Toys) -> Sizes:
    """Their sizes, as the arithmetic takes them."""
    own = {
        "mllm": toy.model.mllm.config,
        "aligner": toy.model.aligner.config,
        "unet": toy.image_decoder.unet.config,
        "vae": toy.image_decoder.vae.config,
    }
    plain = {
        part: {name: value for name, value in config.items() if not name.startswith("_")}
        for part, config in own.items()
    }
    return Sizes(**plain, text_encoder=toy.text_tower.encoder.config.to_dict())


TEXTS = ("a red cat", "a blue dog in the snow", "the green hat", "a creature wearing a red hat, on")


class Documents:
    def batch(self, step, size):
        return [self._record(index) for index in range(step * size, (step + 1) * size)]

    def _record(self, index):
        text = TEXTS[index % 4]
        picture = toy_picture(index % 3, (SIZE, SIZE))
        parts = (picture, text) if index % 2 else (text, picture, TEXTS[index % 3])
        return Document(key=f"document-{index}", parts=parts)


class Captions:
    def batch(self, step, size):
        return [
            Caption(key=f"caption-{i}", text=TEXTS[i % 4], image=toy_picture(i % 4, (SIZE, SIZE)))
            for i in range(step * size, (step + 1) * size)
        ]


class Examples:
    """Examples, edits and captions in turn."""

    def batch(self, step, size):
        return [self._record(index) for index in range(step * size, (step + 1) * size)]

    def _record(self, index):
        square = (SIZE, SIZE)
        image, other = toy_picture(index % 5, square), toy_picture(index % 7 + 5, square)
        match index % 3:
            case 0:
                entity = Entity(mention="cat", start=6, end=9, crop=other, cutout=image)
                caption = "a red cat in the snow"
                return Example(
                    key=f"example-{index}", caption=caption, entities=(entity,), image=image
                )
            case 1:
                return Edit(
                    key=f"edit-{index}",
                    caption="a cat",
                    before=(other,),
                    instruction="a dog",
                    after=image,
                    after_caption="the dog",
                )
        return Caption(key=f"caption-{index}", text=TEXTS[index % 4], image=image)


def composed() -> Composing:
    return Composing(Examples(), seed=0)
