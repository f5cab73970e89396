"""A server without HTTP and without a model, as fast as the disk allows, for test_crash.py to kill.

Run: python busy_server.py FOLDER RUN. It prints one line of JSON for each request that was acknowledged.
"""

import asyncio
import hashlib
import json
import os
import sys
import time
from pathlib import Path

from zturbo.storage.local import LocalFiles
from zturbo.storage.records import Answer, Ending, KeyLimit, Request
from zturbo.storage.sqlite import SqliteRecords, open_sqlite

PRICE = 7
LIMIT = KeyLimit("no_reset", 10**9)
KEY = "0123abcd"
CLIENTS = 8


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def serve(folder: Path, run: str) -> None:
    records = await open_sqlite(folder / "records.db", serve=True, now_ms=now_ms())
    files = await LocalFiles.start(folder / "files")
    await asyncio.gather(*(client(records, files, f"{run}-{number}", number) for number in range(CLIENTS)))


async def client(records: SqliteRecords, files: LocalFiles, name: str, count: int) -> None:
    """Ask for ever; every fifth request fails, and the clients start at different counts, so some fail at once."""
    while True:
        count += 1
        request_id = f"{name}-{count}"
        await records.idempotency.reserve(KEY, request_id, b"digest", now_ms(), now_ms() + 10**9)
        request = Request(request_id=request_id, inference_id="i", created_ms=now_ms(), key=KEY, images=1, model="m")
        assert await records.ledger.start(request, PRICE, LIMIT) is None
        picture = os.urandom(20_000)
        file = await files.put(picture + hashlib.sha256(picture).digest(), "png")
        if count % 5 == 0:
            ending = Ending(status="failed", ended_ms=now_ms(), error="internal_error")
            await files.delete(file)
        else:
            answer = Answer(KEY, request_id, file.encode())
            ending = Ending(status="done", ended_ms=now_ms(), credits=PRICE, files=(file,), answer=answer)
        assert await records.ledger.finish(request_id, ending)
        line = {"request_id": request_id, "status": ending.status, "files": ending.files}
        os.write(1, (json.dumps(line) + "\n").encode())


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
