"""How fast does the server answer many clients, and does it keep its memory and every answer?

    python bench/serve.py [--seconds 120] [--clients 32] [--steps 20] [--damaged 60] [--model nano]

Starts `kosmosg serve` on loopback. First one client asks, one request after another, for a sixth of
the time; then all ask at once. Each request has a seed of its own, and each answer must be one
picture of that seed: none lost, none twice. Last, four clients upload damaged pictures of every
format for `--damaged` seconds: each is drawn from or refused, and memory stays. Prints a table and
writes outputs/bench-serve.json.
"""

import argparse
import base64
import io
import json
import random
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

import httpx
from PIL import Image

CREATURE = Path(__file__).parents[1] / "docs" / "images" / "creature.png"


@dataclass
class Seen:
    """What clients saw."""

    seconds: list[float] = field(default_factory=list[float])
    seeds: list[int] = field(default_factory=list[int])
    refused: int = 0
    wrong: int = 0


def prompt(number: int) -> str | list[Any]:
    """Return one of four prompts, two of them with a picture."""
    url = "data:image/png;base64," + base64.b64encode(CREATURE.read_bytes()).decode()
    picture = {"type": "image_url", "image_url": {"url": url}}
    words = {"type": "text", "text": "in the snow"}
    return (
        "a red creature",
        [picture, words],
        "a creature on the beach",
        [{"type": "text", "text": "a creature"}, picture],
    )[number % 4]


def ask(url: str, seeds: range, steps: int, end: float, seen: Seen) -> None:
    """Ask until the end, one request after another."""
    with httpx.Client(base_url=url, timeout=600) as client:
        for seed in seeds:
            if monotonic() > end:
                return
            said = {"prompt": prompt(seed), "seed": seed, "num_inference_steps": steps}
            began = perf_counter()
            answer = client.post("/v1/images/generations", json=said)
            while answer.status_code == 503:
                seen.refused += 1
                sleep(float(answer.headers["retry-after"]))
                answer = client.post("/v1/images/generations", json=said)
            seen.seconds.append(perf_counter() - began)
            data = answer.json().get("data", [])
            image = Image.open(io.BytesIO(base64.b64decode(data[0]["b64_json"]))) if data else None
            note: Any = {} if image is None else json.loads(image.text["kosmosg"])  # pyright: ignore[reportAttributeAccessIssue] -- of a PNG
            seen.wrong += len(data) != 1 or note["seeds"] != [seed] or data[0]["seed"] != seed
            seen.seeds.append(seed)


def damage(rng: random.Random) -> bytes:
    """Return a picture's file of a random format, cut and with some bytes changed."""
    image, file = Image.open(CREATURE).convert("RGB"), io.BytesIO()
    image.save(file, rng.choice(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")))
    data = bytearray(file.getvalue())
    data = data[: max(8, round(len(data) * rng.uniform(0.02, 1.2)))]
    for _ in range(rng.randrange(40)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def upload(url: str, seed: int, end: float, codes: Counter[int]) -> None:
    """Upload damaged pictures until the end, and count the answers' codes."""
    rng, fields = random.Random(seed), {"prompt": "in the snow", "num_inference_steps": "1"}
    with httpx.Client(base_url=url, timeout=600) as client:
        while monotonic() < end:
            files = {"image[]": ("a", damage(rng))}
            answer = client.post("/v1/images/edits", data=fields, files=files)
            codes[answer.status_code] += 1


def watch(pid: int, end: float, sizes: list[int]) -> None:
    """Note the resident bytes of a process ten times a second."""
    while monotonic() < end:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        sizes.append(pages * 4096)
        sleep(0.1)


def uploads(url: str, pid: int, clients: int, seconds: float) -> tuple[Counter[int], list[int]]:
    """Return the answers to damaged pictures by code, and the server's memory all along."""
    codes, sizes = [Counter[int]() for _ in range(clients)], []
    end = monotonic() + seconds
    threads = [
        threading.Thread(target=upload, args=(url, n, end, codes[n])) for n in range(clients)
    ]
    for thread in [*threads, watcher := threading.Thread(target=watch, args=(pid, end, sizes))]:
        thread.start()
    for thread in [*threads, watcher]:
        thread.join()
    return sum(codes, Counter()), sizes


def growth(sizes: list[int]) -> tuple[float, float, float]:
    """Return the most MiB of the first and of the last tenth, and their ratio."""
    tenth = max(1, len(sizes) // 10)
    first, last = max(sizes[:tenth]), max(sizes[-tenth:])
    return first / 2**20, last / 2**20, last / first


def load(
    url: str, pid: int, clients: int, seconds: float, steps: int
) -> tuple[Seen, float, list[int]]:
    """Return what that many clients saw, how long it took, and the server's memory all along."""
    seen, sizes = [Seen() for _ in range(clients)], []
    end, began = monotonic() + seconds, perf_counter()
    threads = [
        threading.Thread(
            target=ask, args=(url, range(n * 10**6, (n + 1) * 10**6), steps, end, seen[n])
        )
        for n in range(clients)
    ]
    for thread in [*threads, watcher := threading.Thread(target=watch, args=(pid, end, sizes))]:
        thread.start()
    for thread in [*threads, watcher]:
        thread.join()
    whole = Seen(
        seconds=[one for client in seen for one in client.seconds],
        seeds=[one for client in seen for one in client.seeds],
        refused=sum(client.refused for client in seen),
        wrong=sum(client.wrong for client in seen),
    )
    return whole, perf_counter() - began, sizes


def main() -> None:
    """Serve, ask, and say what was seen."""
    parser = argparse.ArgumentParser(description="Load on the server, on loopback.")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--damaged", type=float, default=60)
    parser.add_argument("--model", default="nano")
    options = parser.parse_args()
    command = [sys.executable, "-m", "kosmosg", "serve", "--port", "0", "--model", options.model]
    began = perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        url = server.stdout.readline().decode().strip().rstrip("/")
        while httpx.get(f"{url}/readyz").status_code != 200:
            sleep(0.05)
        ready = perf_counter() - began
        load(url, server.pid, 4, 3, options.steps)  # so that nothing is new to it
        one, one_s, _ = load(url, server.pid, 1, options.seconds / 6, options.steps)
        many, many_s, sizes = load(url, server.pid, options.clients, options.seconds, options.steps)
        uploads(url, server.pid, 4, 3)
        codes, after = uploads(url, server.pid, 4, options.damaged)
        server.terminate()
        ended = server.wait()
    many.seconds.sort()
    first, last, ratio = growth(sizes)
    found = {
        "ready_s": ready,
        "clients": options.clients,
        "steps": options.steps,
        "one_at_a_time_per_s": len(one.seconds) / one_s,
        "together_per_s": len(many.seconds) / many_s,
        "gain": len(many.seconds) / many_s / (len(one.seconds) / one_s),
        "answers": len(many.seeds),
        "twice": len(many.seeds) - len(set(many.seeds)),
        "wrong": one.wrong + many.wrong,
        "told_to_come_again": many.refused,
        "p50_s": many.seconds[len(many.seconds) // 2],
        "p95_s": many.seconds[int(len(many.seconds) * 0.95)],
        "rss_first_tenth_mib": first,
        "rss_last_tenth_mib": last,
        "rss_ratio": ratio,
        **{f"damaged_answers_{code}": count for code, count in sorted(codes.items())},
        "damaged_rss_first_mib": growth(after)[0],
        "damaged_rss_last_mib": growth(after)[1],
        "damaged_rss_ratio": growth(after)[2],
        "exit_code": ended,
    }
    for name, value in found.items():
        print(f"{name:24}{value:10.3f}" if isinstance(value, float) else f"{name:24}{value:10}")
    out = Path("outputs") / "bench-serve.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    failed = any(code >= 500 for code in codes)
    sys.exit(bool(found["twice"] or found["wrong"] or failed or ended))


if __name__ == "__main__":
    main()
