"""What a trial says of itself."""

import pytest

from properties.case import Case
from properties.observation import Observation, RankObservation
from verify.trial import Trial


def observation(*endings: str, again: Observation | None = None) -> Observation:
    ranks = tuple(RankObservation(rank=rank, ending=how) for rank, how in enumerate(endings))  # type: ignore[arg-type]
    return Observation(ranks=ranks, again=again)


@pytest.mark.parametrize(
    ("observed", "endings"),
    [
        (None, set()),
        (observation("returned", "raised"), {"returned", "raised"}),
        (observation("returned", again=observation("timeout")), {"returned", "timeout"}),
    ],
)
def test_its_endings_are_those_of_all_its_runs(observed: Observation | None, endings: set[str]) -> None:
    """A campaign whose time is over cuts the second run of a probe as well, which tells nothing."""
    assert Trial(case=Case(), verdicts=(), observation=observed).endings == endings
