"""Who may call: keys, the admin token, and requests that a foreign web page could have made."""

from __future__ import annotations

import pytest

from byzerllm.errors import AuthenticationFailed, Forbidden
from byzerllm.gateway.access import Access, Keys

TOKEN = "admin-token"


def call(
    access: Access, host: str | None = "127.0.0.1:8765", origin: str | None = None, key: str | None = None
) -> None:
    given = {b"accept": "*/*", b"host": host, b"origin": origin, b"authorization": key}
    access.check_api([(name, value.encode("latin-1")) for name, value in given.items() if value is not None])


@pytest.fixture
def keys() -> Keys:
    return Keys(TOKEN)


@pytest.fixture
def access(keys: Keys) -> Access:
    return Access(keys)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:8765",
        "127.0.0.1",
        "127.0.0.1:1",
        "[::1]",
        "[::1]:8765",
        "127.0.0.2:8000",
        None,
    ],
)
def test_an_own_host_is_let_in(access: Access, host: str | None) -> None:
    call(access, host)
    call(access, host)  # from what is remembered


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8765", "localhost.evil.example", "localhost.", "127.0.0.1.nip.io", "0.0.0.0", "",
     "127.0.0.1@evil.example", "[::1", "[::2]", "xn--lcalhost-54a", "\xfflocalhost"],
)  # fmt: skip
def test_a_foreign_host_is_refused(access: Access, host: str) -> None:
    for _ in range(2):
        with pytest.raises(Forbidden, match="Host or Origin is foreign"):
            call(access, host)


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:5173"])
def test_an_own_pages_origin_is_let_in(access: Access, origin: str) -> None:
    call(access, origin=origin)


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "", "http://localhost.evil.example", "file://"])
def test_a_foreign_pages_origin_is_refused(access: Access, origin: str) -> None:
    with pytest.raises(Forbidden):
        call(access, origin=origin)


def test_what_was_seen_is_remembered_within_a_bound(access: Access) -> None:
    for number in range(2500):
        with pytest.raises(Forbidden):
            call(access, f"evil{number}.example")
        assert len(access._known) <= 1001
    call(access)


def test_without_keys_any_key_is_fine_here_and_only_the_token_from_elsewhere(access: Access) -> None:
    call(access, key="Bearer anything")
    call(access, "evil.example", "http://evil.example", f"Bearer {TOKEN}")
    with pytest.raises(Forbidden):
        call(access, "evil.example", key="Bearer anything")


def test_with_a_key_set_it_is_needed_even_here(keys: Keys, access: Access) -> None:
    keys.add("k1")
    with pytest.raises(AuthenticationFailed, match="needs an API key") as refused:
        call(access)
    assert refused.value.hint == "Send Authorization: Bearer <key>."
    for wrong in ("Bearer k2", "Bearer ", "Bearer", "", "k", "Basic k1", "Bearerk1"):
        with pytest.raises(AuthenticationFailed, match="not known"):
            call(access, key=wrong)
    for right in ("Bearer k1", "bearer k1", "BEARER  k1 ", "k1", f"Bearer {TOKEN}"):
        call(access, key=right)
        call(access, "anywhere.example", "https://page.example", right)


def test_a_key_that_was_added_twice_is_removed_twice(keys: Keys) -> None:
    def state() -> tuple[bool, bool]:
        return keys.required, keys.knows(b"k1")

    keys.add("k1")
    keys.add("k1")
    keys.remove("k1")
    assert state() == (True, True)
    keys.remove("k1")
    assert state() == (False, False)
    keys.remove("k1")
    keys.add("k1")
    assert state() == (True, True)


def test_the_admin_api_takes_the_token_and_nothing_else(keys: Keys, access: Access) -> None:
    keys.add("k1")
    access.check_admin([(b"host", b"any"), (b"authorization", f"Bearer {TOKEN}".encode())])
    for headers in ([], [(b"authorization", b"Bearer k1")], [(b"x-token", TOKEN.encode())]):
        with pytest.raises(AuthenticationFailed, match=r"server\.json"):
            access.check_admin(headers)


def test_no_key_is_kept_in_clear(keys: Keys) -> None:
    keys.add("sk-secret")
    assert "sk-secret" not in repr(vars(keys))
    assert TOKEN not in repr(vars(keys))
