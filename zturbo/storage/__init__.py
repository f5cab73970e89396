"""What the server keeps: records (keys, requests, money) and files (pictures), each behind seams with two siblings.

    records.py  the seams and the dataclasses that travel      files.py   the seam of the pictures
    sqlite.py   their home on disk, over database.py           local.py   a folder
    memory.py   their double, for tests and for trying out     (its double is in memory.py as well)

Nothing here knows HTTP or torch.
"""
