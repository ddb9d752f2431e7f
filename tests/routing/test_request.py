"""A routing request holds numbers and names."""

from routing.request import RoutingRequest
from tests.support.topology import endpoint, pool


def test_a_fresh_request_has_tried_nothing_and_needs_no_known_context() -> None:
    request = RoutingRequest("llama", pool(endpoint(1)))
    assert (request.tokens_estimate, tuple(request.tried), request.needs_context) == (0, (), 0)
