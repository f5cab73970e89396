"""The files of the playground: their headers, and that no path reaches the file system."""

import http.client
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.web.conftest import Playground
from zturbo.api.web import FOLDER, PAGES, read_pages

MAX_WEIGHT_BYTES = 150_000


@pytest.fixture(scope="module")
def client(playground: Playground) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=playground.url) as found:
        yield found


def test_the_page_and_its_headers(client: httpx2.Client) -> None:
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == (
        "default-src 'self'; img-src 'self' blob: data:; connect-src 'self'; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_file_with_its_type(client: httpx2.Client, name: str) -> None:
    answer = client.get(f"/web/{name}")
    assert answer.content == (FOLDER / name).read_bytes()
    assert answer.headers["content-type"].partition(";")[0] == {
        "html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml",
    }[name.rpartition(".")[2]]  # fmt: skip
    assert "content-security-policy" in answer.headers


def test_what_the_browser_has_is_not_sent_again(client: httpx2.Client) -> None:
    tag = client.get("/web/style.css").headers["etag"]
    for sent in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        answer = client.get("/web/style.css", headers={"if-none-match": sent})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == tag
    assert client.get("/web/style.css", headers={"if-none-match": '"other"'}).status_code == 200


def test_head_is_get_without_a_body(client: httpx2.Client) -> None:
    got, head = client.get("/"), client.head("/")
    assert head.content == b""
    assert head.headers["content-length"] == str(len(got.content))
    assert client.post("/").status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "/web/", "/web", "/web/absent.js", "/web/../web.py", "/web/%2e%2e/api/web.py", "/web/..%2fapi%2fweb.py",
        "/web/....//api/web.py", "/web//etc/passwd", "/web/%2fetc%2fpasswd", "/web/style.css%00", "/web/STYLE.CSS",
        "/web/style.css/", "/web/./style.css", "/web/..%5capi%5cweb.py", "/web/index.html%0d%0ax:y",
    ],
)  # fmt: skip
def test_no_path_reaches_the_file_system(playground: Playground, path: str) -> None:
    connection = http.client.HTTPConnection(playground.url.removeprefix("http://"))  # sends the path as it stands
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 404
    assert b"import" not in answer.read()
    connection.close()


def test_files_of_another_kind_are_not_served_by_mistake(tmp_path: Path) -> None:
    (tmp_path / ".hidden.js").write_text("")
    assert read_pages(tmp_path) == {}
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(KeyError):
        read_pages(tmp_path)


def test_the_page_is_light() -> None:
    assert sum(len(page.data) for page in PAGES.values()) < MAX_WEIGHT_BYTES


def test_no_inline_script_or_style_and_no_other_host() -> None:
    """What the policy forbids is not there in the first place."""
    index = PAGES["index.html"].data.decode()
    assert re.findall(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", index) == []
    for name, page in PAGES.items():
        found = re.findall(r"https?://[\w.-]+", page.data.decode())
        assert set(found) <= {"http://www.w3.org"}, name  # the namespace of SVG


def test_every_module_is_used() -> None:
    """Each file is asked for by another one."""
    text = "".join(page.data.decode() for page in PAGES.values())
    for name in set(PAGES) - {"index.html"}:
        assert f'"/web/{name}"' in text or f'"./{name}"' in text, name


def test_both_languages_have_every_text() -> None:
    english, chinese = re.split(r"^const zh = ", PAGES["texts.js"].data.decode(), flags=re.MULTILINE)
    key = re.compile(r'^  "([\w.]+)":', re.MULTILINE)
    assert key.findall(english) == key.findall(chinese)
    assert len(key.findall(english)) == len(set(key.findall(english)))


def test_every_text_of_the_page_is_in_the_tables() -> None:
    keys = set(re.findall(r'^  "([\w.]+)":', PAGES["texts.js"].data.decode(), re.MULTILINE))
    asked = set(re.findall(r'data-(?:text|label|hint)="([\w.]+)"', PAGES["index.html"].data.decode()))
    for name, page in PAGES.items():
        if name.endswith(".js"):
            asked |= set(re.findall(r'\bt\("([\w.]+)"', page.data.decode()))
    assert asked <= keys
