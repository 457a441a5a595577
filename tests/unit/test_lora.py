"""LoRA files load as in StableDiffusionPipeline, without the text encoder that is not there."""

import json
import logging
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kosmosg.errors import CheckpointError
from kosmosg.pipeline import KosmosGPipeline
from toys.model import EMBED_DIM, NUM_QUERIES, SIZE, toy_picture, toy_pipeline
from toys.sampling import seeded, stable_diffusion

RANK = 2
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "samplers.0.conv", "proj_in", "proj_out")
EVERY = (*ATTENTION, *FEED_FORWARD, *CONVOLUTIONS, "time_emb_proj")
TEXT_DIFFUSERS = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
TEXT_KOHYA = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


@pytest.fixture
def pipe() -> KosmosGPipeline:
    return toy_pipeline()


def factors(
    pipe: KosmosGPipeline, seed: int, layers: tuple[str, ...] = ATTENTION
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The two factors of each of these layers of the U-Net, by the layer's name."""
    draw, made = seeded(seed), {}
    for name, module in pipe.unet.named_modules():
        if name.endswith(layers):
            rows, columns, *kernel = module.weight.shape
            made[name] = (
                0.3 * torch.randn(RANK, columns, *kernel, generator=draw),
                0.3 * torch.randn(rows, RANK, *[1 for _ in kernel], generator=draw),
            )
    return made


def diffusers_layout(pipe: KosmosGPipeline, seed: int, text: bool = False, layers=ATTENTION):
    """As `StableDiffusionPipeline.save_lora_weights` writes it."""
    weights = {}
    for name, (down, up) in factors(pipe, seed, layers).items():
        weights |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    if text:
        weights |= {f"{TEXT_DIFFUSERS}.lora_A.weight": torch.ones(RANK, 8)}
        weights |= {f"{TEXT_DIFFUSERS}.lora_B.weight": torch.ones(8, RANK)}
    return weights


def older_layout(pipe: KosmosGPipeline, seed: int, layers=ATTENTION):
    """As diffusers wrote it before it knew peft."""
    weights = {}
    for name, (down, up) in factors(pipe, seed, layers).items():
        weights |= {f"unet.{name}.lora.down.weight": down, f"unet.{name}.lora.up.weight": up}
    return weights


def processor_layout(pipe: KosmosGPipeline, seed: int, layers=ATTENTION, prefix: str = "unet."):
    """As the first diffusers wrote it: the attention's processor has the factors."""
    assert layers == ATTENTION, "it knew no others"
    weights = {}
    for name, (down, up) in factors(pipe, seed).items():
        attention, matrix = re.fullmatch(r"(.+\.attn[12])\.(to_\w+)(?:\.0)?", name).groups()
        key = f"{prefix}{attention}.processor.{matrix}_lora"
        weights |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
    return weights


def saved_by_the_unet(pipe: KosmosGPipeline, seed: int, layers=ATTENTION):
    """The same as `unet.save_attn_procs` wrote it."""
    return processor_layout(pipe, seed, layers, prefix="")


def kohya_layout(
    pipe: KosmosGPipeline, seed: int, text: bool = False, alpha: float = 1.0, layers=ATTENTION
):
    """As kohya's sd-scripts write it, to_out.0 and all, alpha included."""
    weights = {}
    for name, (down, up) in factors(pipe, seed, layers).items():
        key = f"lora_unet_{name.replace('.', '_')}"
        weights |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        weights |= {f"{key}.alpha": torch.tensor(alpha)}
    if text:
        weights |= {f"{TEXT_KOHYA}.lora_down.weight": torch.ones(RANK, 8)}
        weights |= {f"{TEXT_KOHYA}.lora_up.weight": torch.ones(8, RANK)}
        weights |= {f"{TEXT_KOHYA}.alpha": torch.tensor(1.0)}
    return weights


TODAY = {"diffusers": diffusers_layout, "kohya": kohya_layout}
LAYOUTS = TODAY | {
    "older": older_layout,
    "processor": processor_layout,
    "saved by the unet": saved_by_the_unet,
}


@pytest.fixture
def saved(pipe, tmp_path):
    def save(layout: str, seed: int = 1, **options) -> Path:
        path = tmp_path / f"{layout}-{seed}.safetensors"
        save_file(LAYOUTS[layout](pipe, seed, **options), path, metadata={"format": "pt"})
        return path

    return save


def draw(pipe, **arguments) -> torch.Tensor:
    given = {
        "prompt_embeds": torch.randn(1, NUM_QUERIES, EMBED_DIM, generator=seeded(1)),
        "negative_prompt_embeds": torch.randn(1, NUM_QUERIES, EMBED_DIM, generator=seeded(2)),
        "num_inference_steps": 3,
        "guidance_scale": 3.0,
        "height": SIZE,
        "width": SIZE,
        "output_type": "latent",
        "generator": seeded(),
    }
    return pipe(**(given | arguments)).images


def by_hand(pipe: KosmosGPipeline, *added: tuple[int, float], layers=ATTENTION) -> torch.Tensor:
    """What comes out when scale x up x down of each seed is added to the weights themselves."""
    other = toy_pipeline()
    with torch.no_grad():
        for seed, scale in added:
            for name, (down, up) in factors(pipe, seed, layers).items():
                product = torch.einsum("or,r...->o...", up.flatten(1), down)
                other.unet.get_submodule(name).weight.add_(scale * product)
    return draw(other)


@pytest.mark.parametrize(
    ("layout", "layers"),
    [(name, ATTENTION) for name in LAYOUTS]
    + [(name, EVERY) for name in ("diffusers", "older", "kohya")],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} kinds",
)
def test_a_file_gives_what_stable_diffusion_gives_and_adds_up_by_hand(pipe, saved, layout, layers):
    plain, path = draw(pipe), saved(layout, layers=layers)
    pipe.load_lora_weights(path)
    ours = draw(pipe)
    stable = stable_diffusion(toy_pipeline())
    if layout == "saved by the unet":
        stable.load_lora_weights(processor_layout(pipe, 1))  # it passes over names without "unet."
    else:
        stable.load_lora_weights(str(path.parent), weight_name=path.name)
    assert torch.equal(ours, draw(stable))
    scale = 1.0 / RANK if layout == "kohya" else 1.0  # kohya's alpha is 1
    by_sum = by_hand(pipe, (1, scale), layers=layers)
    torch.testing.assert_close(ours, by_sum, atol=2e-4, rtol=1e-5)
    assert (ours - plain).norm() / plain.norm() > 1e-4


@pytest.mark.parametrize("layout", TODAY)
def test_what_is_for_a_text_encoder_is_left_out_with_one_warning(pipe, saved, layout):
    with pytest.warns(UserWarning, match="for a text encoder; Kosmos-G has none") as warned:
        pipe.load_lora_weights(saved(layout, text=True))
    assert len(warned) == 1
    other = toy_pipeline()
    other.load_lora_weights(saved(layout))
    assert torch.equal(draw(pipe), draw(other))


def test_a_file_for_the_unet_alone_loads_without_a_word(pipe, saved, caplog):
    logger = logging.getLogger("diffusers")  # which hands nothing on to pytest's own handler
    logger.addHandler(caplog.handler)
    try:
        pipe.load_lora_weights(saved("diffusers"))
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.messages == []


def test_several_at_once_have_weights_of_their_own(pipe, saved):
    pipe.load_lora_weights(saved("diffusers", 1), adapter_name="style")
    pipe.load_lora_weights(saved("kohya", 2), adapter_name="detail")
    pipe.set_adapters(["style", "detail"], [0.5, 0.0])
    torch.testing.assert_close(draw(pipe), by_hand(pipe, (1, 0.5)), atol=1e-4, rtol=0)
    pipe.set_adapters(["detail"], [0.6])
    torch.testing.assert_close(draw(pipe), by_hand(pipe, (2, 0.6 / RANK)), atol=1e-4, rtol=0)
    assert pipe.get_list_adapters() == {"unet": ["style", "detail"]}
    assert pipe.get_active_adapters() == ["detail"]


# peft warns of every LoRA but the first; ours does not.
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_two_at_once_add_up_as_in_stable_diffusion(pipe, saved):
    files, weights = {"style": saved("diffusers", 1), "detail": saved("kohya", 2)}, [0.5, -0.8]
    stable = stable_diffusion(toy_pipeline())
    for name, path in files.items():
        pipe.load_lora_weights(path, adapter_name=name)
        stable.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name)
    pipe.set_adapters(list(files), weights)
    stable.set_adapters(list(files), weights)
    both = draw(pipe)
    assert torch.equal(both, draw(stable))
    by_sum = by_hand(pipe, (1, 0.5), (2, -0.8 / RANK))
    torch.testing.assert_close(both, by_sum, atol=1e-4, rtol=0)
    for alone in (by_hand(pipe, (1, 0.5)), by_hand(pipe, (2, -0.8 / RANK))):
        assert (both - alone).abs().max() > 1e-2
    pipe.fuse_lora()
    torch.testing.assert_close(draw(pipe), by_sum, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("part", "kind"), [("hada_w1_a", "LoHa"), ("lokr_w1", "LoKr"), ("lora_mid.weight", "LoCon")]
)
def test_a_relative_of_lora_is_refused_by_its_name(pipe, tmp_path, part, kind):
    plain = draw(pipe)
    weights = kohya_layout(pipe, 1, layers=EVERY)
    weights |= {f"{key.partition('.')[0]}.{part}": torch.ones(2, 2) for key in weights}
    save_file(weights, tmp_path / "style.safetensors")
    with pytest.raises(CheckpointError, match=rf"^style\.safetensors is a {kind}.*, not a LoRA"):
        pipe.load_lora_weights(tmp_path / "style.safetensors")
    assert torch.equal(draw(pipe), plain)


def test_a_dora_loads_as_in_diffusers_and_says_what_is_lost(pipe, tmp_path):
    weights, path = kohya_layout(pipe, 1), tmp_path / "dora.safetensors"
    scales = {f"{key[:-6]}.dora_scale": torch.ones(1) for key in weights if key.endswith(".alpha")}
    save_file(weights | scales, path)
    with pytest.warns(UserWarning, match="dora_scale is left out"):
        pipe.load_lora_weights(path)
    stable = stable_diffusion(toy_pipeline())
    stable.load_lora_weights(str(tmp_path), weight_name=path.name)
    assert torch.equal(draw(pipe), draw(stable))


def test_an_error_of_diffusers_stays_short(pipe):
    weights = {f"lora_unet_down_blocks_{n}.odd": torch.zeros(1) for n in range(99)}
    weights |= kohya_layout(pipe, 1)
    with pytest.raises(CheckpointError, match="have not been correctly renamed") as caught:
        pipe.load_lora_weights(weights)
    assert len(str(caught.value)) < 500


def test_scale_of_a_call(pipe, saved):
    plain = draw(pipe)
    pipe.load_lora_weights(saved("diffusers"))
    whole = draw(pipe)
    assert torch.equal(draw(pipe, cross_attention_kwargs={"scale": 1.0}), whole)
    none = draw(pipe, cross_attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(none, plain, atol=1e-5, rtol=0)
    half = draw(pipe, cross_attention_kwargs={"scale": 0.5})
    torch.testing.assert_close(half, by_hand(pipe, (1, 0.5)), atol=1e-4, rtol=0)
    assert torch.equal(draw(pipe), whole), "the scale of one call outlived it"


def test_fusing_and_unloading(pipe, saved):
    plain = draw(pipe)
    pipe.load_lora_weights(saved("kohya"))
    loaded = draw(pipe)
    pipe.fuse_lora()
    assert pipe.num_fused_loras == 1
    torch.testing.assert_close(draw(pipe), loaded, atol=1e-4, rtol=0)
    pipe.unfuse_lora()
    torch.testing.assert_close(draw(pipe), loaded, atol=1e-4, rtol=0)
    pipe.unload_lora_weights()
    torch.testing.assert_close(draw(pipe), plain, atol=1e-4, rtol=0)
    assert pipe.get_list_adapters() == {}


def test_a_pipeline_on_the_same_unet_sees_the_lora_and_the_prompt_does_not(pipe, saved):
    picture = toy_picture(1)
    with torch.no_grad():
        before = pipe.encode_prompt(["a", picture])
    pipe.load_lora_weights(saved("diffusers"))
    with torch.no_grad():
        after = pipe.encode_prompt(["a", picture])
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert torch.equal(draw(stable_diffusion(pipe)), draw(pipe))


def test_a_directory_with_one_file_and_weights_by_name(pipe, saved):
    path = saved("diffusers")
    pipe.load_lora_weights(path.parent, adapter_name="a")
    pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name="b")
    pipe.load_lora_weights(diffusers_layout(pipe, 1), adapter_name="c")
    made = []
    for adapter in "abc":
        pipe.set_adapters([adapter])
        made.append(draw(pipe))
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_loaded_and_drawn_with_from_a_prompt_of_pictures(pipe, saved):
    prompt = ["a", toy_picture(1), "on the snow"]
    plain = pipe(prompt, generator=seeded(), output_type="latent").images
    pipe.load_lora_weights(saved("kohya"))
    changed = pipe(prompt, generator=seeded(), output_type="latent").images
    assert (changed - plain).norm() / plain.norm() > 1e-4


def test_bad_files_are_named(pipe, saved, tmp_path):
    plain = draw(pipe)
    good = saved("diffusers")
    with pytest.raises(
        CheckpointError, match=r"no LoRA .*lost\.safetensors; nothing is downloaded"
    ):
        pipe.load_lora_weights(tmp_path / "lost.safetensors")
    with pytest.raises(CheckpointError, match="no LoRA someone/lora"):
        pipe.load_lora_weights("someone/lora")
    (tmp_path / "lora.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(CheckpointError, match="other files can run code"):
        pipe.load_lora_weights(tmp_path / "lora.bin")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(good.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"cannot load the LoRA .*broken"):
        pipe.load_lora_weights(broken)
    with pytest.raises(CheckpointError, match="has 2 files"):
        pipe.load_lora_weights(tmp_path)
    save_file({"encoder.weight": torch.zeros(2)}, broken)
    with pytest.raises(CheckpointError, match="no LoRA weights for a U-Net"):
        pipe.load_lora_weights(broken)
    weights = diffusers_layout(pipe, 1)
    save_file({name: torch.zeros(3, 3) for name in weights}, broken)
    with pytest.raises(CheckpointError, match=r"cannot load the LoRA .*broken.*size mismatch"):
        pipe.load_lora_weights(broken)
    assert torch.equal(draw(pipe), plain), "a LoRA that was refused left something behind"
    pipe.load_lora_weights(good, adapter_name="one")
    with pytest.raises(CheckpointError, match="name not in use"):
        pipe.load_lora_weights(good, adapter_name="one")


REGEX = "([a-z_0-9.]+)+!"  # takes longer than anybody lives to find out that no name fits


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"unet.r": RANK, "unet.target_modules": REGEX}, "is not the name of a module"),
        ({"unet.r": RANK, "unet.rank_pattern": {REGEX: 4}}, "is not the name of a module"),
        ({"unet.r": "many"}, "cannot load the LoRA"),
        ({"unet.surplus": 1}, "cannot load the LoRA"),
        ([1], "cannot load the LoRA"),
    ],
)
def test_what_a_file_says_of_itself_can_neither_hang_nor_crash(pipe, tmp_path, said, words):
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(said)}
    save_file(diffusers_layout(pipe, 1), tmp_path / "odd.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=words):
        pipe.load_lora_weights(tmp_path / "odd.safetensors")


def test_weights_that_are_no_pair_of_matrices_are_refused(pipe, tmp_path):
    whole = diffusers_layout(pipe, 1)
    for weights in (
        {name: weight[0].clone() for name, weight in whole.items()},
        {name: weight for name, weight in whole.items() if "lora_A" in name},
    ):
        save_file(weights, tmp_path / "odd.safetensors")
        with pytest.raises(CheckpointError, match="cannot load the LoRA"):
            pipe.load_lora_weights(tmp_path / "odd.safetensors")


def test_what_peft_writes_of_a_lora_counts(pipe, tmp_path):
    names = sorted(
        {name.removeprefix("unet.").rsplit(".lora_")[0] for name in diffusers_layout(pipe, 1)}
    )
    said = {"unet.r": RANK, "unet.lora_alpha": 2 * RANK, "unet.target_modules": names}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(said)}
    save_file(diffusers_layout(pipe, 1), tmp_path / "peft.safetensors", metadata=metadata)
    pipe.load_lora_weights(tmp_path / "peft.safetensors")
    scaled = draw(pipe)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(diffusers_layout(pipe, 1), adapter_name="twice")
    pipe.set_adapters("twice", 2.0)
    torch.testing.assert_close(draw(pipe), scaled, atol=1e-5, rtol=0)


def test_a_model_is_saved_without_its_lora_or_with_it_fused(pipe, saved, tmp_path):
    pipe.load_lora_weights(saved("diffusers"))
    with pytest.raises(CheckpointError, match="call unload_lora_weights first"):
        pipe.save_pretrained(tmp_path / "model")
    loaded = draw(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert not [name for name in weights if "lora" in name]
    again = KosmosGPipeline.from_pretrained(tmp_path / "model")
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(draw(again), loaded, atol=1e-4, rtol=0)
