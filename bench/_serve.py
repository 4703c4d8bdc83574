"""The other end of bench._openfhe.Process: requests as JSON lines on standard input, answers on standard output."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def serve(side: Any) -> None:
    """Answer with the methods of `side` until standard input ends. Whatever a library prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(side, request.pop("do"))(**request)
        except Exception as error:  # whatever it is, the other process tells it
            answer = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
