"""Signed statements: genuine ones pass wherever they are, any change fails."""

import base64
import json

import pytest

from gateway.signing import NotGenuine, Signer, fingerprint, signed_file, verify
from quotas.statement import canonical
from tests.quotas.test_statement import statement

SIGNER = Signer("11" * 32)


def file_of(signer: Signer = SIGNER, **fields: object) -> bytes:
    document = canonical(statement(**fields))
    return signed_file(document, *signer.sign(document))


def test_a_statement_is_read_back_with_its_signers_key():
    found, public_key = verify(file_of())

    assert found == statement()
    assert fingerprint(public_key) == fingerprint(SIGNER.public_key)


def test_another_layout_is_the_same_statement():
    turned = json.dumps(json.loads(file_of()), indent=4, sort_keys=True).encode()

    assert verify(turned)[0] == statement()


@pytest.mark.parametrize("field", ["number", "charged_nano", "closed_ms", "party", "currency"])
def test_any_other_value_is_found_out(field):
    said = json.loads(file_of())
    value = said["statement"][field]
    said["statement"][field] = value + 1 if isinstance(value, int) else value + "x"

    with pytest.raises(NotGenuine, match="does not fit"):
        verify(json.dumps(said).encode())


def test_a_line_added_or_taken_away_is_found_out():
    for change in (lambda lines: lines.pop(), lambda lines: lines.append(lines[0])):
        said = json.loads(file_of())
        change(said["statement"]["lines"])
        with pytest.raises(NotGenuine):
            verify(json.dumps(said).encode())


def test_another_signers_key_is_another_fingerprint():
    other = Signer("22" * 32)

    assert fingerprint(verify(file_of(other))[1]) != fingerprint(SIGNER.public_key)
    said = json.loads(file_of(other))
    said["public_key"] = base64.b64encode(SIGNER.public_key).decode()
    with pytest.raises(NotGenuine):
        verify(json.dumps(said).encode())


def test_a_signed_statement_that_does_not_add_up_is_refused():
    with pytest.raises(NotGenuine, match="lines sum to 30"):
        verify(file_of(charged_nano=29))


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'{"public_key": 1}', b"\xff", b'{"algorithm":"none"}']
)
def test_what_is_no_signed_statement_is_said_to_be_none(data):
    with pytest.raises(NotGenuine, match="not a signed statement"):
        verify(data)
