"""What a server lets one request, and all of them together, take of the machine."""

from dataclasses import dataclass
from typing import Annotated

from sfumato.core.errors import CapacityError, ConfigError
from sfumato.core.request import Request


@dataclass(frozen=True)
class Limits:
    """What is refused before anything is drawn.

    Raises:
        ConfigError: a limit below 1.
    """

    most_waiting: Annotated[int, "requests that may be unfinished at once; one more is told to come again"] = 100
    most_pictures: Annotated[int, "pictures that one request may ask for"] = 16
    most_pixels: Annotated[int, "pixels that one picture may have"] = 2048 * 2048
    most_steps: Annotated[int, "steps that one request may ask for"] = 1000
    most_bytes: Annotated[int, "bytes that one request may bring along, pictures included"] = 64_000_000
    kept: Annotated[int, "pictures that are kept in memory after their requests have ended, the newest"] = 100

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ConfigError(f"{name} = {value}: must be at least 1.")

    def check(self, settled: Request) -> None:
        """Refuse a request without blanks that is too large.

        Raises:
            CapacityError: it is.
        """
        assert settled.width is not None
        assert settled.height is not None
        assert settled.steps is not None
        sizes = {
            "pictures": (settled.count, self.most_pictures), "steps": (settled.steps, self.most_steps),
            "pixels a picture": (settled.width * settled.height, self.most_pixels),
        }  # fmt: skip
        for name, (value, most) in sizes.items():
            if value > most:
                raise CapacityError(f"The request asks for {value:,} {name}; this server draws {most:,} at most.")
