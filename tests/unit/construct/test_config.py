import dataclasses

import pytest

from kosmosg import config as configuration
from kosmosg.construct.config import (
    RECIPES,
    Blip2Config,
    ConstructConfig,
    EndpointConfig,
    LlmConfig,
    MllmConfig,
    RuleConfig,
    as_released,
    nano,
    paper,
)
from kosmosg.errors import ConfigError


def test_the_recipes_are_what_the_paper_and_the_release_say() -> None:
    # Paper section 3.1; NUMERICS section 9 for the converter.
    assert isinstance(paper().captioner, Blip2Config)
    assert paper().captioner.hub == "Salesforce/blip2-opt-6.7b"
    assert paper().entities.hub == "mosaicml/mpt-7b-instruct"
    assert paper().segmenter.hub == "CIDAS/clipseg-rd64-refined"
    released = as_released()
    assert released.captioner.hub == "Salesforce/blip2-opt-2.7b"
    assert (released.entities.decoding, released.entities.max_new_tokens) == ("released", 10)
    assert (released.segmenter.threshold, released.size) == (0.3, 512)
    assert (released.picture, released.without_entities) == ("square", "leave_out")
    assert released.max_overlap is paper().max_overlap is None  # neither names such a rule


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_same_after_yaml(name: str, tmp_path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(configuration.to_yaml(RECIPES[name]()))
    assert configuration.load(ConstructConfig, path) == RECIPES[name]()


def test_a_step_is_changed_by_its_path() -> None:
    changed = configuration.override(
        nano(), ["entities={kind: llm, directory: m}", "entities.decoding=released", "size=32"]
    )
    assert changed.entities == LlmConfig(directory="m", decoding="released")
    served = configuration.override(
        nano(), ["entities={kind: endpoint, url: 'http://127.0.0.1:1/v1', model: m}"]
    )
    assert served.entities == EndpointConfig(url="http://127.0.0.1:1/v1", model="m")
    assert configuration.override(paper(), ["entities={kind: rule}"]).entities == RuleConfig()
    assert configuration.override(
        paper(), ["captioner={kind: mllm, directory: nano}"]
    ).captioner == (MllmConfig(directory="nano"))
    without = configuration.override(paper(), ["captions=beside", "captioner=null"])
    assert without.captioner is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("size=0", "size is 0"),
        ("batch_size=0", "batch_size"),
        ("segmenter.threshold=1.0", "between 0 and 1"),
        ("max_overlap=1.0", "max_overlap is 1.0; give 0 to 1"),
        ("captioner=null", "captions=beside"),
        ("segmenter.thresh=0.5", "segmenter.threshold"),
        ("captions=none", "beside"),
    ],
)
def test_a_value_that_cannot_work(change: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        configuration.override(paper(), [change])


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        paper().size = 3
