"""Keys, rates, room, the mark and the metrics: small parts, each alone."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kosmosg.errors import ConfigError
from kosmosg.serve.keys import Keys, read_keys
from kosmosg.serve.limits import Rate, Room
from kosmosg.serve.mark import FOUND, marked, score
from kosmosg.serve.metrics import Metrics

ONE, TWO = "a" * 16, "0123456789abcdef"


def test_a_key_belongs_to_its_place_in_the_file(tmp_path: Path):
    (tmp_path / "keys").write_text(f"# people\n{ONE}\n\n{TWO}\n")
    keys = read_keys(tmp_path / "keys")
    assert keys.owner(f"Bearer {ONE}") == "key-1"
    assert keys.owner(f"bearer  {TWO} ") == "key-2"
    for wrong in (None, "", ONE, f"Basic {ONE}", f"Bearer {ONE}x", "Bearer", "Bearer \udcff"):
        assert keys.owner(wrong) is None, wrong


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "has 0 keys"), ("short\n", "key 1 in"), (f"{ONE}\nwith a blank in it\n", "key 2 in")],
)
def test_bad_key_files_are_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_keys(tmp_path / "keys")
    with pytest.raises(ConfigError, match="check the path"):
        read_keys(tmp_path / "none")


def test_no_message_shows_a_key(tmp_path: Path):
    (tmp_path / "keys").write_text("secret\n")
    with pytest.raises(ConfigError) as caught:
        read_keys(tmp_path / "keys")
    assert "secret" not in str(caught.value)


def test_keys_are_not_kept():
    assert ONE not in str(vars(Keys([ONE])))


def test_a_client_has_its_own_rate():
    now = 0.0
    rate = Rate(60, clock=lambda: now)
    assert [rate.seconds_to_wait("a") for _ in range(15)] == [0.0] * 15
    assert rate.seconds_to_wait("a") == pytest.approx(1.0)
    assert rate.seconds_to_wait("b") == 0.0
    now = 2.0
    assert [rate.seconds_to_wait("a") > 0 for _ in range(3)] == [False, False, True]


def test_rates_forget_who_came_longest_ago():
    rate = Rate(60)
    for number in range(10_100):
        rate.seconds_to_wait(str(number))
    assert len(rate._clients) == 10_000


def test_room_is_all_or_nothing():
    room = Room(10)
    assert room.take(6)
    assert not room.take(5)
    room.give_back(6)
    assert room.take(10)


@pytest.mark.parametrize("size", [(64, 64), (65, 67), (512, 512)])
def test_the_mark_is_found_and_is_not_seen(size: tuple[int, int]):
    rng = np.random.default_rng(0)
    rough = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC)
    with_mark = marked(image)
    assert score(with_mark) > FOUND > abs(score(image))
    difference = np.abs(np.asarray(with_mark, int) - np.asarray(image, int))
    assert difference.max() <= 2
    file = io.BytesIO()
    with_mark.save(file, "JPEG", quality=95)
    assert score(Image.open(file)) > FOUND


def test_pictures_without_the_mark_hardly_ever_have_it():
    rng = np.random.default_rng(1)
    scores = [
        score(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
        for _ in range(500)
    ]
    assert max(scores) < FOUND
    assert 0.7 < np.std(scores) < 1.3  # so that FOUND means what it says


def test_metrics_are_prometheus_text():
    metrics = Metrics()
    metrics.count("kosmosg_requests_total", path="/v1/models", status=200)
    metrics.count("kosmosg_requests_total", path="/v1/models", status=200)
    with metrics.timed("step"):
        pass
    text = metrics.text({"kosmosg_ready": 1})
    assert 'kosmosg_requests_total{path="/v1/models",status="200"} 2\n' in text
    assert 'kosmosg_work_seconds_count{work="step"} 1\n' in text
    assert "# TYPE kosmosg_ready gauge\nkosmosg_ready 1\n" in text
