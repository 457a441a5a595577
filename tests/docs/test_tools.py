"""The snippets of docs/tools.md run, one after another, on toy models of the names they use."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, MotionAdapter, T2IAdapter, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from kosmosg.pipeline import KosmosGPipeline
from toys.model import EMBED_DIM, SIZE, toy_picture, toy_pipeline


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory in which each name of the page is a model or a picture."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    pipe = toy_pipeline()
    pipe.save_pretrained("kosmosg-1.9b")
    for name in ("dog.png", "photo.png", "mask.png", "depth.png"):
        toy_picture(len(name), (64, 64)).save(name)
    for name in ("sd-controlnet-canny", "sd-controlnet-depth"):
        ControlNetModel.from_unet(
            pipe.unet, conditioning_embedding_out_channels=(4, 8)
        ).save_pretrained(name)
    nine = UNet2DConditionModel.from_config({**pipe.unet.config, "in_channels": 9})
    nine.save_pretrained("stable-diffusion-inpainting/unet")
    T2IAdapter(3, [8, 16], num_res_blocks=1, downscale_factor=2).save_pretrained(
        "t2iadapter-sketch-sd15"
    )
    MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
        motion_max_seq_length=4,
    ).save_pretrained("animatediff-motion-adapter-v1-5-2")
    _save_ip_adapter(Path("ip-adapter/models"), pipe)


def _save_ip_adapter(directory: Path, pipe: KosmosGPipeline) -> None:
    directory.mkdir(parents=True)
    width, tokens = 12, 4
    clip = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        projection_dim=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=8,
    )
    CLIPVisionModelWithProjection(clip).save_pretrained(directory / "image_encoder")
    weights = {
        "image_proj.proj.weight": torch.randn(tokens * EMBED_DIM, width),
        "image_proj.proj.bias": torch.randn(tokens * EMBED_DIM),
        "image_proj.norm.weight": torch.ones(EMBED_DIM),
        "image_proj.norm.bias": torch.zeros(EMBED_DIM),
    }
    layers = [name for name in pipe.unet.attn_processors if "attn2" in name]
    for number, name in zip(range(1, 99, 2), layers, strict=False):
        rows = pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("to_k_ip", "to_v_ip"):
            weights[f"ip_adapter.{number}.{part}.weight"] = torch.randn(rows, EMBED_DIM)
    save_file(weights, directory / "ip-adapter_sd15.safetensors")


# diffusers' T2I-Adapter pipeline decodes by a method that diffusers itself calls old.
@pytest.mark.filterwarnings("ignore:The decode_latents method is deprecated:FutureWarning")
@pytest.mark.usefixtures("models")
def test_every_snippet_runs(repository: Path) -> None:
    pytest.importorskip("cv2")
    page = (repository / "docs/tools.md").read_text()
    first, *snippets = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
    names: dict = {}
    exec(compile(first, "docs/tools.md", "exec"), names)
    names["said"]["num_inference_steps"] = 2
    assert len(snippets) == 8
    # Each of these is one call that draws: what `image` was before is no proof of the next.
    assert (
        sum(len(re.findall(r"^(?:image|frames) = ", snippet, re.M)) for snippet in snippets) == 13
    )
    for snippet in snippets:
        names.pop("image", None)
        exec(
            compile(snippet.replace("num_inference_steps=4, ", ""), "docs/tools.md", "exec"), names
        )
        made = names["image"] if "image" in names else names["frames"][-1]
        assert isinstance(made, Image.Image), snippet
        assert made.size == (SIZE, SIZE), snippet
        assert np.ptp(np.asarray(made)) > 0, snippet


def test_each_tool_of_the_table_has_its_section(repository: Path) -> None:
    page = (repository / "docs/tools.md").read_text()
    linked = re.findall(r"^\| \[[^]]+\]\(#([^)]+)\)", page, re.M)
    headings = re.findall(r"^## (.+)$", page, re.M)
    anchors = [re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in headings]
    assert linked == anchors[: len(linked)]
    assert len(linked) == 8
