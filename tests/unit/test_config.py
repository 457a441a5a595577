import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosmosg import config
from kosmosg.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    lr: float
    betas: tuple[float, float] = (0.9, 0.98)
    schedule: Literal["linear", "cosine"] = "linear"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    name: str
    weight: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    run_dir: Path
    seed: int = 0
    optim: OptimConfig = OptimConfig(lr=1e-3)
    sources: tuple[SourceConfig, ...] = (SourceConfig(name="captions"), SourceConfig(name="edits"))
    ema: OptimConfig | None = None
    note: str | None = None
    limits: dict[str, int] = dataclasses.field(default_factory=dict)


RUN = RunConfig(run_dir=Path("runs/one"))


def test_dict_holds_only_json_values() -> None:
    data = config.to_dict(RUN)
    assert data["run_dir"] == "runs/one"
    assert data["optim"] == {"lr": 1e-3, "betas": [0.9, 0.98], "schedule": "linear"}
    assert config.from_dict(RunConfig, data) == RUN


@given(
    run=st.builds(
        RunConfig,
        run_dir=st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8})?", fullmatch=True).map(Path),
        seed=st.integers(0, 2**40),
        optim=st.builds(
            OptimConfig, lr=st.floats(0, 1), schedule=st.sampled_from(["linear", "cosine"])
        ),
        note=st.none() | st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs"))),
        limits=st.dictionaries(st.text("abc", min_size=1), st.integers(0, 9), max_size=3),
    ),
    suffix=st.sampled_from([".json", ".yaml"]),
)
def test_a_saved_configuration_is_read_back_equal(
    run: RunConfig, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / f"run{suffix}"
    config.save(run, path)
    assert config.load(RunConfig, path) == run


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        ("optim.lr=3e-4", "optim.lr", 3e-4),
        ("optim.lr=1", "optim.lr", 1.0),
        ("seed=7", "seed", 7),
        ("optim.betas=[0.9, 0.95]", "optim.betas", (0.9, 0.95)),
        ("optim.schedule=cosine", "optim.schedule", "cosine"),
        ("sources.1.weight=9", "sources.1.weight", 9),
        ("run_dir=runs/two", "run_dir", Path("runs/two")),
        ("note=007", "note", "007"),
        ("note=yes", "note", "yes"),
        ("note=a: b: c", "note", "a: b: c"),
        ("note=x=y", "note", "x=y"),
        ("note=null", "note", None),
        ("ema={lr: 1e-2}", "ema.lr", 0.01),
        ("limits.edits=3", "limits", {"edits": 3}),
    ],
)
def test_override_changes_what_it_names(change: str, path: str, value: object) -> None:
    changed: Any = config.override(RUN, [change])
    for part in path.split("."):
        changed = changed[int(part)] if part.isdecimal() else getattr(changed, part)
    assert changed == value
    assert config.to_dict(RUN)["seed"] == 0  # the original is untouched


def test_overrides_apply_in_order_and_leave_the_rest() -> None:
    changed = config.override(RUN, ["seed=1", "seed=2", "optim.lr=0.5"])
    assert changed == dataclasses.replace(RUN, seed=2, optim=OptimConfig(lr=0.5))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optim.lrr=3e-4", ["'optim.lrr'", "did you mean optim.lr?"]),
        ("lr=3e-4", ["'lr'", "did you mean optim.lr or ema.lr?"]),
        ("optm.lr=1", ["'optm.lr'", "did you mean optim.lr?"]),
        ("zzz=1", ["'zzz'", "the fields are run_dir, seed, optim"]),
        ("sources.2.weight=1", ["'sources.2.weight'", "'2' is no index below 2"]),
        ("sources.x=1", ["'x' is no index below 2"]),
        ("ema.lr=1", ["'ema.lr'", "would lie inside the value None"]),
        ("seed=many", ["seed = 'many'", "valid integer"]),
        ("seed=1.5", ["seed = 1.5", "integer"]),
        ("optim.lr=[1]", ["optim.lr = [1]", "valid number"]),
        ("optim.schedule=step", ["optim.schedule = 'step'", "'linear' or 'cosine'"]),
        ("optim={}", ["optim.lr is missing"]),
        ("seed", ["'seed'", "path=value"]),
        ("=3", ["'=3'", "path=value"]),
    ],
)
def test_a_wrong_override_names_path_value_and_remedy(change: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.override(RUN, [change])
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_field_in_a_file_is_named_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("run_dir: a\noptim: {lr: 1e-3, beta: 1}\nsources: [{name: a, weights: 2}]\n")
    with pytest.raises(ConfigError) as caught:
        config.load(RunConfig, path)
    assert str(caught.value) == (
        f"{path}: no field 'optim.beta'; did you mean optim.betas?;"
        " no field 'sources.0.weights'; did you mean sources.weight?"
    )


def test_yaml_scientific_notation_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "optim.yml"
    path.write_text("lr: 1e-3\n")
    assert config.load(OptimConfig, path) == OptimConfig(lr=0.001)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.yaml", b"lr: [", "is not valid YAML"),
        ("a.json", b"{", "is not valid JSON"),
        ("a.json", b"\xff\xfe", "is not valid JSON"),
        ("a.yaml", b"- 1\n", "not a mapping"),
        ("a.yaml", b"", "holds None, not a mapping"),
        ("a.toml", b"lr = 1", "must end in .json, .yaml or .yml"),
        ("a.yaml", None, "No such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        config.load(OptimConfig, path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_failed_save_names_the_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write .*No such file"):
        config.save(RUN, tmp_path / "absent" / "run.json")
    with pytest.raises(ConfigError, match="must end in"):
        config.save(RUN, tmp_path / "run.txt")
    assert list(tmp_path.iterdir()) == []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sources:
    sources: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class WithSources:
    data: Sources | None = None


def test_an_item_of_a_mapping_is_made_by_its_first_change() -> None:
    changes = ["data.sources.a.name=x", "data.sources.b.name=y", "data.sources.a.weight=2"]
    changed = config.override(WithSources(), changes)
    sources = {"a": SourceConfig(name="x", weight=2), "b": SourceConfig(name="y")}
    assert changed == WithSources(data=Sources(sources=sources))
    for change in ("data.seed=1", "data.source.a.name=x", "data.sources.a.named=x"):
        with pytest.raises(ConfigError, match=r"did you mean|would lie inside"):
            config.override(WithSources(), [change])
