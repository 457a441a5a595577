"""The authors' checkpoint files: every tensor in them, and what the model makes of them."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kosmosg.convert import pickled, their_name
from kosmosg.convert.reading import EMBEDDING, TIED, Checkpoint, read_checkpoint
from kosmosg.sequence import Batch
from kosmosg.verify.compare import EXACT, TOLERANCE, Check, difference, exactly
from kosmosg.verify.golden import Golden

# Options that config.json has under the same name.
OPTIONS = (
    "decoder_layers",
    "decoder_embed_dim",
    "decoder_attention_heads",
    "decoder_ffn_embed_dim",
    "latent_query_num",
)


def checkpoint(golden: Golden, name: str) -> Iterator[Check]:
    """Yield options, names, shapes and values of a checkpoint, and the condition that it gives.

    Values must be those of the folder's rule, rounded to the type that they are stored in.

    Source:
        NUMERICS section 12.
    """
    path = golden.directory / name
    found = read_checkpoint(path, keep_training_parts=False)
    if found.has_reconstruction:
        found = read_checkpoint(path, keep_training_parts=True)
    for option in OPTIONS:
        if option in found.options:
            yield exactly(name, option, found.options[option], golden.config[option])
    ours = {key: list(tensor.shape) for key, tensor in found.tensors.items()}
    shapes = _shapes(golden, found)
    yield exactly(name, "names of weights", sorted(ours), sorted(shapes))
    yield exactly(name, "shapes of weights", sorted(ours.items()), sorted(shapes.items()))
    for key, tensor in pickled.load(path)["model"].items():
        rule = golden.rule(EMBEDDING if key == TIED else key, tensor.shape).to(tensor.dtype)
        error = difference(tensor.read(), rule)
        yield Check(case=name, what=key, error=error, tolerance=EXACT)
    yield _condition(golden, name, found)


def _shapes(golden: Golden, found: Checkpoint) -> dict[str, list[int]]:
    """Return name and shape of each weight that a checkpoint of this stage must have."""
    parts: dict[str, nn.Module] = {"": golden.model}
    if found.has_reconstruction:
        parts["text_encoder."] = golden.text_encoder
    else:
        parts |= {"unet.": golden.decoder.unet, "vae.": golden.decoder.vae}
    return {
        prefix + name: list(parameter.shape)
        for prefix, module in parts.items()
        for name, parameter in module.named_parameters()
        if found.has_reconstruction or not name.startswith("aligner.decoder.")
    }


def _condition(golden: Golden, name: str, found: Checkpoint) -> Check:
    """Return how far the checkpoint's condition is from that of the rule's weights.

    The prompts are of our own, so that a damaged case does not spoil the checkpoint's line. That
    the rule's weights give the recorded conditions is what the cases show.
    """
    stored = {their_name(key): tensor for key, tensor in found.tensors.items()}

    def value(key: str, _shape: tuple[int, ...]) -> Tensor:
        return stored[key].read().float()

    def rule(key: str, shape: tuple[int, ...]) -> Tensor:
        return golden.rule(key, shape).to(stored[key].dtype).float()

    ours, theirs = (
        Golden(golden.directory, weight=weight, with_reconstruction=found.has_reconstruction)
        for weight in (value, rule)
    )
    batch = _prompts(golden)
    with torch.no_grad():
        error = difference(ours.model.encode(batch), theirs.model.encode(batch))
    return Check(case=name, what="condition", error=error, tolerance=TOLERANCE)


def _prompts(golden: Golden) -> Batch:
    """Return words with a picture among them, and fewer words alone."""
    config, generator = golden.config, torch.Generator().manual_seed(0)
    slots, side = config["latent_query_num"], config["vision"]["image_size"]
    ids = torch.randint(config["vocab_size"], (2, slots + 4), generator=generator)
    ids[:, 0] = config["bos"]
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 3:] = False
    image_mask = torch.zeros_like(mask)
    image_mask[0, 2 : 2 + slots] = True
    return Batch(
        input_ids=ids.where(mask, config["pad"]),
        attention_mask=mask,
        image_mask=image_mask,
        pixel_values=torch.randn(1, 3, side, side, generator=generator),
    )
