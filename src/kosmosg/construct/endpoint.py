"""Entities from a server that speaks OpenAI's chat API, such as vLLM's: any model, any machine."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

from kosmosg.construct.config import EndpointConfig
from kosmosg.construct.entities import INSTRUCTION, EntityFinder, parse_tags
from kosmosg.errors import ConfigError, DataError

MAX_ANSWER_BYTES = 1 << 20
MAX_WAIT_S = 60.0
_SCHEMA = {
    "type": "object",
    "properties": {"entities": {"type": "array", "items": {"type": "string"}}},
    "required": ["entities"],
    "additionalProperties": False,
}
# Answers that may be others next time: too many requests, a server that starts or is too busy.
_TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class _Garbled(Exception):
    """An answer that came whole and says nothing that can be used."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to the server that was named and to no other."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 -- as it was
        del args, kwargs


_OPENER = urllib.request.build_opener(_NoRedirect)


def endpoint_finder(endpoint: EndpointConfig) -> EntityFinder:
    """Return the model of a server as a finder, asked for JSON and read strictly.

    A caption whose answers are of no use gives a DataError in its place; a server that does not
    answer at all, or refuses, ends the call.

    Raises:
        ConfigError: From the finder, if the server cannot be reached or refuses.
    """
    key = os.environ.get(endpoint.key_variable, "") if endpoint.key_variable else ""
    if not key.isprintable() or not key.isascii():
        raise ConfigError(
            f"the key in {endpoint.key_variable} has characters that no key has; set it again"
        )

    def find(captions: Sequence[str]) -> list[list[str] | DataError]:
        with ThreadPoolExecutor(endpoint.parallel) as threads:
            return list(threads.map(lambda caption: _ask(endpoint, key, caption), captions))

    return find


def _ask(endpoint: EndpointConfig, key: str, caption: str) -> list[str] | DataError:
    """Return a caption's tags; ask again while that may help, a second time after nonsense."""
    wait, garbled = endpoint.first_wait_s, 0
    for left in reversed(range(endpoint.retries + 1)):
        try:
            return parse_tags(_tags(_post(endpoint, key, caption)), caption)
        except _Garbled as error:
            garbled += 1
            if garbled > 1 or not left:
                return DataError(
                    f"{endpoint.model} at {endpoint.url} names no entities of {caption[:60]!r}:"
                    f" {error}",
                    reason="answer not understood",
                )
            continue
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in _TRY_AGAIN:
                raise ConfigError(_refused(endpoint, error.code)) from None
            problem = f"HTTP {error.code}"
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            problem = " ".join(str(getattr(error, "reason", error)).split()) or repr(error)
        if not left:
            raise ConfigError(
                f"{endpoint.url} does not answer after {endpoint.retries + 1} tries: {problem};"
                " start it, or correct entities.url"
            )
        time.sleep(wait)
        wait = min(2 * wait, MAX_WAIT_S)
    raise AssertionError("the last try ends in an answer or an error")


def _post(endpoint: EndpointConfig, key: str, caption: str) -> bytes:
    question = {
        "model": endpoint.model,
        "messages": [
            {"role": "system", "content": f'{INSTRUCTION} Answer as JSON: {{"entities": [...]}}.'},
            {"role": "user", "content": caption},
        ],
        "temperature": 0,
        "max_tokens": endpoint.max_tokens,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "entities", "strict": True, "schema": _SCHEMA},
        },
    }
    headers = {"Content-Type": "application/json"} | (
        {"Authorization": f"Bearer {key}"} if key else {}
    )
    request = urllib.request.Request(
        f"{endpoint.url.rstrip('/')}/chat/completions",
        data=json.dumps(question).encode(),
        headers=headers,
    )
    with _OPENER.open(request, timeout=endpoint.timeout_s) as answer:
        data = _read(answer, time.monotonic() + endpoint.timeout_s)
        stated = answer.headers.get("Content-Length", "")
    if len(data) > MAX_ANSWER_BYTES:
        raise _Garbled(f"it has more than {MAX_ANSWER_BYTES} bytes")
    if stated.isdecimal() and len(data) < int(stated):
        raise http.client.IncompleteRead(data, int(stated) - len(data))
    return data


def _read(answer: http.client.HTTPResponse, deadline: float) -> bytes:
    """Return an answer's bytes; a server that sends one now and then is too slow as well."""
    data = b""
    while len(data) <= MAX_ANSWER_BYTES:
        part = answer.read1(1 << 16)
        if not part:
            break
        data += part
        if time.monotonic() > deadline:
            raise TimeoutError("timed out while it answered")
    return data


def _tags(data: bytes) -> list[str]:
    """Return the texts of `{"entities": [...]}` in a chat completion, and nothing else."""
    try:
        content = json.loads(data)["choices"][0]["message"]["content"]
        found: Any = json.loads(content)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _Garbled(f"no JSON where it should be ({type(error).__name__})") from None
    tags = found.get("entities") if isinstance(found, dict) and len(found) == 1 else None
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise _Garbled(f"it is {str(found)[:60]!r}")
    return cast("list[str]", tags)


def _refused(endpoint: EndpointConfig, code: int) -> str:
    if code in (401, 403):
        name = endpoint.key_variable or "the variable that entities.key_variable names"
        return f"{endpoint.url} refuses the key (HTTP {code}); set {name}"
    return (
        f"{endpoint.url} refuses the question (HTTP {code}); correct entities.url (it ends in /v1)"
        f" or entities.model ({endpoint.model})"
    )
