import pytest

from sfumato.core.errors import ConfigError
from sfumato.core.sizes import parse_bytes, show_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [("6GB", 6 * 10**9), ("1.5 GiB", 3 * 2**29), ("800m", 800 * 10**6), ("4096", 4096), (123, 123), ("2g", 2 * 10**9),
     ("1Ki", 1024), ("7b", 7)],
)  # fmt: skip
def test_amounts(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "much", "6 apples", "-1GB", "0", "1,5GB", "GB", "1e9"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ConfigError, match="like 6GB"):
        parse_bytes(text)


def test_shown() -> None:
    assert (show_bytes(6.02e9), show_bytes(312e6)) == ("6.02 GB", "312 MB")
