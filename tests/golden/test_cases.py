"""Every number of the released model: states, conditions, losses, gradients, samplers, VAE."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from kosmosg.verify import Golden, check_file, files
from kosmosg.verify.compare import Case, read_case
from kosmosg.verify.folder import compare_tensors

# Each with the number of its comparisons: 13 or 18 tensors of a forward pass and the condition;
# 216 gradient norms among those of stage 2; timesteps and latents by two samplers, and by the
# pipeline.
CASES = {
    **dict.fromkeys(("text_only", "null"), 14),
    **dict.fromkeys(("one_image", "two_images", "padded_batch3"), 19),
    **{
        f"encode_condition.{prompt}.{end}": 2 if end == "empty" else 1
        for prompt in ("two_images.n1", "padded_batch3.n2")
        for end in ("empty", "neg")
    },
    **{
        f"align.{prompt}.{target}": 230 if target == "fixed" else 233
        for prompt in ("text_only", "two_images", "padded_batch3")
        for target in ("fixed", "cliptext")
    },
    **{f"diff_loss.seed{seed}": 2 for seed in (3, 11, 12)},
    **{f"sched.dpms.{steps}": 4 for steps in (5, 20, 50, 100)},
    **{f"sched.ddim.{steps}": 4 for steps in (5, 50, 250)},
    **{f"sched.pndm.{steps}": 4 for steps in (5, 20, 50)},
    **{
        f"sample.{name}.{run}": 5
        for name in ("dpms", "ddim", "pndm")
        for run in ("4.g3.0", "6.g1.0", "10.g7.5")
    },
    "vae": 4,
}
CHANGE = 1e-3  # a hundred times what is allowed


def path(name: str) -> str:
    return f"cases/{name}.safetensors"


def test_no_golden_case_is_forgotten(shared: Golden) -> None:
    recorded = {name for name in files(shared) if name.startswith("cases/")}
    assert recorded == {path(name) for name in CASES}


def test_the_copy_is_what_was_recorded(kept: Golden, shared: Golden) -> None:
    for name in ["config.json", *files(kept)]:
        ours, theirs = kept.directory / name, shared.directory / name
        assert ours.read_bytes() == theirs.read_bytes(), name


@pytest.mark.parametrize("name", CASES)
def test_case(golden_with: Callable[[str], Golden], name: str) -> None:
    checks = list(check_file(golden_with(path(name)), path(name)))
    assert [check for check in checks if not check.ok] == []
    assert len(checks) == CASES[name]
    # Random weights drive latents to about 70, which is what 1e-5 is taken of there.
    latents = name.startswith("s")
    assert max(check.tolerance for check in checks) <= (1e-3 if latents else 1e-5)


def test_eight_updates_of_the_authors_optimiser(shared: Golden) -> None:
    checks = list(check_file(shared, "train_align.json"))
    assert [check for check in checks if not check.ok] == []
    whats = [check.what for check in checks]
    assert whats[:4] == [
        f"{name}, 8 updates" for name in ("lr", "mse", "reconstruction", "grad_norm")
    ]
    assert len(whats) == 4 + 36
    loose = [check.what for check in checks if check.tolerance > 1e-5]
    assert len(loose) == 2
    assert all(what.endswith("k_proj.bias afterwards") for what in loose)


def test_every_norm_has_its_case(shared: Golden) -> None:
    checks = list(check_file(shared, "align_grad_norms.json"))
    assert len(checks) == 6
    assert all(check.ok for check in checks)


def outputs_of_the_copy() -> list[tuple[str, str]]:

    return [
        (file.name, key)
        for file in sorted((Path(__file__).parent / "data" / "cases").glob("*.safetensors"))
        for key in load_file(file)
        if key.startswith("out.") or (key == "in.timesteps" and file.name.startswith("sched."))
    ]


@pytest.mark.parametrize(("name", "key"), outputs_of_the_copy())
def test_one_changed_number_of_any_tensor_is_found(kept: Golden, name: str, key: str) -> None:
    case = read_case(kept.directory, f"cases/{name}")
    changed = case.tensors[key].clone()
    changed.view(-1)[-1] += 1 if key == "in.timesteps" else CHANGE * max(1, changed.abs().max())
    case = Case(case.name, {**case.tensors, key: changed})
    failed = [check.what for check in compare_tensors(kept, case) if not check.ok]
    assert failed
    assert all(what.startswith(key.removeprefix("out.")) for what in failed)
