import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosmosg.data.jsonplace import place_of

TEXT = """{"kind": "example",
 "entities": [
   {"mention": "dog"},
   {"start" : 2}],
 "é\\"": [[], {}, [true, 17]],
 "kind": "edit"}"""


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ((), (1, 1)),
        (("kind",), (6, 10)),  # the later of two
        (("entities",), (2, 14)),
        (("entities", 1, "start"), (4, 15)),
        (("entities", 1, "end"), (4, 4)),  # missing: the object that lacks it
        (("entities", 0, "mention"), (3, 16)),
        (('é"', 2, 1), (5, 25)),
        (("entities", 0, "mention", "x"), (3, 16)),
        (("entities", 7), (2, 14)),
    ],
)
def test_a_field_is_found(path, place):
    assert place_of(TEXT, path) == place


values = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(values, st.sampled_from([None, 1]), st.booleans())
def test_every_value_begins_where_it_is_said_to(value, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)

    def look(part, path):
        line, column = place_of(text, path)
        start = sum(len(one) + 1 for one in text.split("\n")[: line - 1]) + column - 1
        assert json.JSONDecoder().raw_decode(text, start)[0] == part
        inside = part.items() if isinstance(part, dict) else ()
        for name, inner in enumerate(part) if isinstance(part, list) else inside:
            look(inner, [*path, name])

    look(value, [])
