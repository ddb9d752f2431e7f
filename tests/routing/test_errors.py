"""Routing's errors carry facts."""

from routing.errors import NoEndpoint, RoutingError


def test_no_endpoint_says_when_to_come_back_and_why() -> None:
    error = NoEndpoint(7, {1: "full"})
    assert isinstance(error, RoutingError)
    assert (error.retry_after_s, error.reasons) == (7, {1: "full"})
    assert str(error) == "no endpoint; retry after 7 s"
