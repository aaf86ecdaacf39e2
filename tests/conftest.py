"""What every test shares."""

from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture(autouse=True)
def _own_errors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests marked `bad_input` see the product's own errors, not those of jaxtyping's hook."""
    if request.node.get_closest_marker("bad_input") is None:
        yield
        return
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
