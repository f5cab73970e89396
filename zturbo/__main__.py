"""`python -m zturbo` is the command `zturbo`."""

import sys

from zturbo.cli import main

sys.exit(main())
