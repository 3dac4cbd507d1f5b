import pytest

from schemas.problems import InvalidInput
from subscriptions.sink_urls import SinkRules

OPEN = SinkRules(allow_http=True, check=lambda _: None)
STRICT = SinkRules(allow_http=False, check=lambda url: "must not be here" if "10.0.0.1" in url else None)


@pytest.mark.parametrize(
    "url",
    [
        "https://afnemer.example",
        "https://afnemer.example/",
        "HTTPS://Afnemer.Example:8443/a/b;c=d/%7Ee?x=1&y=/?",
        "https://sub_domain.afnemer.example./hook",
        "https://192.0.2.1/hook",
        "https://[2001:db8::1]:8443/hook",
        "https://xn--bcher-kva.example/",
        "https://localhost",
        "http://127.0.0.1:1/hook?a=b",
    ],
)
def test_an_absolute_url_with_a_host_can_be_a_sink(url: str) -> None:
    OPEN.validate(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hook",
        "/hook",
        "//afnemer.example/hook",
        "https:/afnemer.example",
        "https://",
        "https:///hook",
        "https://:443/",
        "https://?x",
        "ftp://afnemer.example/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https://user@afnemer.example/",
        "https://user:pass@afnemer.example/",
        "https://afnemer.example#fragment",
        "https://afnemer.example/\\@evil.example",
        "https://afnemer.example\\.evil.example/",
        "https://afnemer.example /",
        " https://afnemer.example/",
        "https://afnemer.example/\n",
        "https://afnemer.example/a b",
        "https://afnemer.example/%zz",
        "https://afnemer..example/",
        "https://-afnemer.example/",
        "https://bücher.example/",
        "https://afnemer.example:0/",
        "https://afnemer.example:65536/",
        "https://afnemer.example:8x/",
        "https://[::1/",
        "https://[1.2.3.4]/",
        "https://[fe80::1%25eth0]/",
        "https://" + "a" * 64 + ".example/",
        "https://afnemer.example/" + "x" * 2048,
    ],
)
def test_anything_else_cannot(url: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        OPEN.validate(url)
    assert [(param.name, param.code) for param in refused.value.params] == [("/sink", "sink")]


@pytest.mark.parametrize(
    ("url", "code"), [("http://a.example/", "sink-insecure"), ("https://10.0.0.1/", "sink-forbidden")]
)
def test_what_an_installation_forbids_is_told_apart(url: str, code: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        STRICT.validate(url)
    assert refused.value.params[0].code == code
