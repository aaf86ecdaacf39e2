"""What every test shares."""

from collections.abc import Iterator

import jaxtyping
import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _own_errors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests marked `bad_input` see the product's own errors, not those of jaxtyping's hook."""
    if request.node.get_closest_marker("bad_input") is None:
        yield
        return
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
