"""Reads and prints addresses, and listens on and connects to real ones."""

import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaspar.address import MAX_UNIX_PATH, Address, bound, connect, listen, parse, parse_port
from gaspar.errors import AddressError, BindError

TIMEOUT = 60.0  # seconds until something that hangs fails; nothing here takes that long


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a path short enough for a Unix socket's in it."""
    path = tempfile.mkdtemp(prefix="gaspar-")
    yield Path(path)
    shutil.rmtree(path)


# ---- reading and printing ----


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:10123", Address("127.0.0.1", 10123)),
        ("localhost:0", Address("localhost", 0)),
        ("example.org:65535", Address("example.org", 65535)),
        ("[::1]:10123", Address("::1", 10123)),
        ("[fe80::1%eth0]:1", Address("fe80::1%eth0", 1)),
        ("unix:/run/app/gaspar.sock", Address(path="/run/app/gaspar.sock")),
        ("unix:relative.sock", Address(path="relative.sock")),
        ("unix:/with:colon", Address(path="/with:colon")),
    ],
)
def test_an_address_is_read_and_prints_as_it_was_written(text: str, address: Address) -> None:
    assert parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "expected host:port"),
        ("10123", "expected host:port"),
        (":10123", "expected host:port"),
        ("localhost", "expected host:port"),
        ("::1:10123", "in brackets"),
        ("[::1]", "expected [v6]:port"),
        ("[::1]10123", "expected [v6]:port"),
        ("[::1:10123", "expected [v6]:port"),
        ("[]:1", "expected [v6]:port"),
        ("[[::1]:1", "expected [v6]:port"),
        ("[::1]]:1", "expected [v6]:port"),
        ("[::1]x:1", "expected [v6]:port"),
        ("::1]:1", "expected host:port"),
        ("host]:1", "expected host:port"),
        ("ho[st:1", "expected host:port"),
        ("[::1]:1]:2", "port '1]:2' is not a number"),
        ("unix:", "a path must follow"),
        ("unix:/a\0b", "a path must follow"),
    ],
)
def test_what_is_no_address_is_refused_with_what_was_expected(text: str, why: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse(text)
    assert why in str(caught.value)
    assert text.partition("\0")[0][:5] in str(caught.value)


@pytest.mark.parametrize("port", ["", "x", "-1", "+1", "65536", "1.0", " 1", "1 ", "٣", "9" * 5000])
@pytest.mark.parametrize("host", ["localhost", "[::1]"])
def test_a_bad_port_is_refused_with_its_range(host: str, port: str) -> None:
    with pytest.raises(AddressError, match="is not a number from 0 to 65535"):
        parse(f"{host}:{port}")


@pytest.mark.parametrize("port", [-1, 65536, "65536", 10**6])
def test_a_port_alone_is_refused_by_name(port: int | str) -> None:
    with pytest.raises(AddressError, match=f"^port {port!r} is not a number from 0 to 65535"):
        parse_port(port)


@pytest.mark.parametrize("port", [0, 1, 65535])
def test_a_port_is_a_number_or_text(port: int) -> None:
    assert parse_port(port) == parse_port(str(port)) == port


@pytest.mark.parametrize("value", [None, 10123, b"localhost:1", ("localhost", 1)])
def test_what_is_no_string_is_a_type_error_that_names_the_type(value: object) -> None:
    with pytest.raises(TypeError, match=f"not {type(value).__name__}"):
        parse(value)  # type: ignore[arg-type]


def test_a_unix_path_may_have_107_bytes_and_no_more() -> None:
    path = "/" + "ü" * ((MAX_UNIX_PATH - 1) // 2)
    assert len(path.encode()) == MAX_UNIX_PATH
    assert parse(f"unix:{path}").path == path
    with pytest.raises(AddressError, match="108 bytes, a Unix socket's may have 107"):
        parse(f"unix:{path}x")


@given(st.text(max_size=30) | st.text("[]:a1", max_size=12) | st.from_regex(r"(unix:)?[a-z.:%/]*:?[0-9]{0,6}"))
def test_any_text_is_an_address_that_prints_as_itself_or_an_address_error(text: str) -> None:
    try:
        address = parse(text)
    except AddressError:
        return
    assert parse(str(address)) == address
    assert 0 <= address.port <= 65535


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.1.2.3:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/x", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("[fe80::1%eth0]:1", False),
        ("example.org:1", False),
    ],
)
def test_an_address_is_local_if_only_this_machine_can_reach_it(text: str, local: bool) -> None:
    assert parse(text).is_local is local


# ---- listening and connecting ----


def exchange(listener: socket.socket) -> None:
    """Connect to where the listener listens, and back and forth."""
    with connect(bound(listener), TIMEOUT) as client:
        listener.settimeout(TIMEOUT)
        server, _ = listener.accept()
        with server:
            client.sendall(b"there")
            assert server.recv(5, socket.MSG_WAITALL) == b"there"
            server.sendall(b"back")
            assert client.recv(4, socket.MSG_WAITALL) == b"back"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_on_port_0_a_listener_says_which_port_it_got(host: str) -> None:
    try:
        listener = listen(Address(host, 0))
    except BindError as error:
        if host != "::1":
            raise
        pytest.skip(str(error))
    with listener:
        assert bound(listener).port > 0
        assert not listener.getblocking()
        exchange(listener)


def test_a_unix_listener_says_its_path(folder: Path) -> None:
    path = str(folder / "s")
    with listen(Address(path=path)) as listener:
        assert bound(listener) == Address(path=path)
        exchange(listener)


def test_the_longest_unix_path_can_be_listened_on(folder: Path) -> None:
    path = str(folder / "s")
    path += "s" * (MAX_UNIX_PATH - len(os.fsencode(path)))
    with listen(parse(f"unix:{path}")) as listener:
        exchange(listener)


def test_closing_an_accepted_connection_is_a_reset() -> None:
    with listen(Address("127.0.0.1", 0)) as listener, connect(bound(listener), TIMEOUT) as client:
        listener.settimeout(TIMEOUT)
        listener.accept()[0].close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_connection_does_not_wait_to_fill_its_packets() -> None:
    with listen(Address("127.0.0.1", 0)) as listener, connect(bound(listener), TIMEOUT) as client:
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_was_served_can_be_served_again_at_once() -> None:
    listener = listen(Address("127.0.0.1", 0))
    where = bound(listener)
    with listener:
        exchange(listener)
    with listen(where) as again:
        exchange(again)


def test_an_address_that_is_taken_is_a_bind_error_that_names_it() -> None:
    with listen(Address("127.0.0.1", 0)) as listener:
        where = bound(listener)
        with pytest.raises(BindError, match=f"cannot listen on {where}: ") as caught:
            listen(where)
        assert caught.value.errno == errno.EADDRINUSE


def test_an_address_of_another_machine_is_a_bind_error_that_names_it() -> None:
    with pytest.raises(BindError, match=r"cannot listen on 192\.0\.2\.1:0: ") as caught:  # RFC 5737: nobody's
        listen(Address("192.0.2.1", 0))
    assert caught.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("host", ["a..b", ".", "a" * 64 + ".org"])
def test_what_can_be_no_host_name_is_a_bind_error_that_says_so(host: str) -> None:
    with pytest.raises(BindError, match=f"cannot listen on {host}:0: not a host name$") as caught:
        listen(parse(f"{host}:0"))
    assert caught.value.errno == errno.EINVAL


def test_a_unix_path_in_no_folder_is_a_bind_error_that_names_it(folder: Path) -> None:
    path = folder / "gone" / "s"
    with pytest.raises(BindError, match=f"cannot listen on unix:{path}: ") as caught:
        listen(Address(path=str(path)))
    assert caught.value.errno == errno.ENOENT


def test_a_socket_file_that_nobody_listens_on_is_replaced(folder: Path) -> None:
    address = Address(path=str(folder / "s"))
    listen(address).close()  # as a killed daemon does: the file stays
    with listen(address) as listener:
        exchange(listener)


def test_a_socket_file_that_somebody_listens_on_is_left_alone(folder: Path) -> None:
    address = Address(path=str(folder / "s"))
    with listen(address) as listener:
        with pytest.raises(BindError) as caught:
            listen(address)
        assert caught.value.errno == errno.EADDRINUSE
        listener.settimeout(TIMEOUT)
        listener.accept()[0].close()  # of who looked whether it is alive
        exchange(listener)


def test_a_file_that_is_no_socket_is_left_alone(folder: Path) -> None:
    file = folder / "s"
    file.write_text("precious")
    with pytest.raises(BindError) as caught:
        listen(Address(path=str(file)))
    assert caught.value.errno == errno.EADDRINUSE
    assert file.read_text() == "precious"


def test_connecting_to_where_nobody_listens_is_refused(folder: Path) -> None:
    listener = listen(Address("127.0.0.1", 0))
    where = bound(listener)
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        connect(where, TIMEOUT)
    with pytest.raises(FileNotFoundError):
        connect(Address(path=str(folder / "s")), TIMEOUT)
