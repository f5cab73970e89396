"""Names: their form, and that none is ever given twice, to threads and to processes."""

import os
import re
import threading

import pytest

from zturbo.tokens import LENGTH, new_token


def test_no_name_is_given_twice() -> None:
    names: list[str] = []
    threads = [threading.Thread(target=lambda: names.extend(new_token() for _ in range(2000))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == len(set(names)) == 8000
    assert all(re.fullmatch("[A-Za-z0-9_-]{21}", name) for name in names)
    assert {len(name) for name in names} == {LENGTH}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_names_of_its_own() -> None:
    new_token()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, new_token().encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reading, 100).decode()
    for end in (reading, writing):
        os.close(end)
    assert theirs not in [new_token() for _ in range(1000)]
