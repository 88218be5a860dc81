"""One line of build/bench.json."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """A measured figure and its rival's, from the same run; ``more_is_better`` decides how the ratio is taken."""

    name: str
    value: float
    unit: str
    rival: str
    rival_value: float
    more_is_better: bool = False

    @property
    def ratio(self) -> float:
        """How many times better than the rival."""
        return self.value / self.rival_value if self.more_is_better else self.rival_value / self.value

    def to_json(self) -> dict[str, Any]:
        """The line, with the ratio."""
        kept = {name: value for name, value in asdict(self).items() if name != "more_is_better"}
        return kept | {"ratio": self.ratio}
