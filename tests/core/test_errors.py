"""What an error message offers."""

import inspect

from sfumato.core import errors


def test_nearest_ignores_case_and_keeps_the_spelling() -> None:
    assert errors.nearest("EULR A", ["Euler a", "Heun"]) == "; did you mean 'Euler a'?"


def test_where_nothing_is_near_everything_is_named() -> None:
    assert errors.nearest("zzz", ["b", "a"]) == "; known are a, b."
    assert errors.nearest("zzz", []) == ""


def test_every_error_is_a_sfumato_error() -> None:
    found = [e for _, e in inspect.getmembers(errors, inspect.isclass) if issubclass(e, Exception)]
    assert len(found) > 5
    assert all(issubclass(e, errors.SfumatoError) and e.__doc__ for e in found)
