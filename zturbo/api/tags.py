"""Entity tags: what a client has already need not be sent again (RFC 9110, 8.8.3 and 13.1.2)."""


def known(header: str | None, tag: str) -> bool:
    """Whether `If-None-Match` names a tag, or is "*"; weak and strong ones of the same text count as one."""
    named = {one.strip().removeprefix("W/") for one in (header or "").split(",")}
    return bool(named & {tag.removeprefix("W/"), "*"})
