"""Where no receiver is: the host's own link, metadata services, and what is no host, in any spelling."""

import pytest

from gateway.wire.addresses import check_receiver, why_not
from gateway.wire.dial import ConnectFailed


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "::1", "10.0.0.5", "172.16.3.4", "192.168.1.1", "100.64.0.9", "203.0.113.9",
     "8.8.8.8", "2001:db8::5", "fd12:3456::1", "::ffff:10.0.0.5"],
)  # fmt: skip
def test_the_operators_own_networks_and_the_internet_may_be_named(address):
    check_receiver(address)


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "169.254.170.2", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254",
     "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "2002:a9fe:a9fe::1", "168.63.129.16",
     "100.100.100.200", "192.0.0.192", "fd00:ec2::254", "0.0.0.0", "0.1.2.3", "::",
     "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1", "::ffff:0.0.0.0", "localhost", ""],
)  # fmt: skip
def test_what_no_receiver_lives_at_is_refused(address):
    assert why_not(address)
    with pytest.raises(ConnectFailed, match="no receiver is there"):
        check_receiver(address)


def test_teredo_is_judged_by_the_client_it_carries():
    # the client's address is stored inverted: 169.254.169.254 ^ 255.255.255.255
    assert why_not("2001:0:4136:e378:8000:63bf:5601:5601") == "link-local"
