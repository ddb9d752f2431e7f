"""A request on its way: who stops it first, and what may be said of it."""

from gateway.call import Call
from gateway.contract.errors import Overdue
from tests.support.calls import REQUEST_ID, request


def test_the_first_reason_to_end_early_stands():
    call = Call(request(), None, REQUEST_ID, None)
    error = Overdue()
    call.stop("timeout", error)
    call.leave()

    assert call.stopped == ("timeout", error)


def test_what_it_is_called_in_a_log_holds_nothing_of_its_body_or_head():
    call = Call(request(b'{"messages":"the prompt"}'), None, REQUEST_ID, None)

    assert (repr(call), repr(call.request)) == (
        f"<Call {REQUEST_ID}>",
        "<Request POST /v1/chat/completions>",
    )
