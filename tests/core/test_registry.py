"""Tables of names."""

import pytest

from sfumato.core.errors import CheckpointError, RequestError
from sfumato.core.registry import Registry, fold

TABLE = Registry(
    "errand", {"path_join": "posixpath:join", "absent": "no_such_module_at_all:x"}, {"Join Paths": "path_join"}
)


@pytest.mark.parametrize("name", ["path_join", "Path-Join", "PATH JOIN", "pathjoin", "join paths", "Join_Paths"])
def test_every_spelling_finds_the_same(name: str) -> None:
    assert TABLE.canonical(name) == "path_join"
    assert TABLE.get(name)("a", "b") == "a/b"


def test_listing_imports_nothing() -> None:
    assert list(TABLE) == ["path_join", "absent"]
    assert TABLE.canonical("Absent") == "absent"


def test_an_unknown_name_is_an_error_that_offers_the_nearest() -> None:
    with pytest.raises(RequestError, match=r"no errand called 'path_jion'; did you mean 'path_join'"):
        TABLE.get("path_jion")
    with pytest.raises(CheckpointError, match="known are only"):
        Registry("thing", {"only": "a:b"}, error=CheckpointError).get("zzzzzz")


def test_folding_keeps_what_tells_samplers_apart() -> None:
    assert fold("DPM++ 2M") == "dpm++2m"
    assert fold("DPM++ 2M") != fold("DPM 2M")
