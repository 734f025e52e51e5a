from fedproxy.wire.cookie import set_cookie, take


def test_take_gives_the_first_value_and_leaves_the_others_in_order() -> None:
    assert take(b'a=1;  m="x"; b=2;m=y', b"m") == (b"x", b"a=1; b=2")
    assert take(b"m=x", b"m") == (b"x", b"")
    assert take(b"a=1", b"m") == (None, b"a=1")


def test_set_cookie_is_a_whole_line() -> None:
    assert (
        set_cookie("fedproxy_member", b"gesis", 14400, secure=False)
        == b"Set-Cookie: fedproxy_member=gesis; Path=/; Max-Age=14400; HttpOnly; SameSite=Lax\r\n"
    )
    assert set_cookie("m", b"x", 1, secure=True).endswith(b"SameSite=Lax; Secure\r\n")
