"""A process that has imported what commands need, and starts each as a copy of itself: without the seconds of imports.

Reads lines of JSON on standard input, ``{"words": […], "stderr": FILE}``; answers with the number of the new process
and, when that has ended, with its exit code (the signal's number below zero, as :mod:`subprocess` has it).
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
from typing import Any

import checkout  # noqa: F401
import cv2  # noqa: F401
import torch  # noqa: F401
import torchvision  # noqa: F401

import pixelsem.defenses.training
import pixelsem.engine.attacking
import pixelsem.engine.processes
import pixelsem.report.html_report  # noqa: F401
from pixelsem.cli.app import main


def start(command: dict[str, Any]) -> int:
    """Return the number of a new process that runs the command; in that process it does not return."""
    process = os.fork()
    if process:
        return process
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background is often told to ignore it
    for stream, target in ((0, os.devnull), (1, os.devnull), (2, command["stderr"])):
        opened = os.open(target, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(opened, stream)
        os.close(opened)
    sys.argv = ["pixelsem", *command["words"]]
    try:
        main()
    except SystemExit as end:
        atexit._run_exitfuncs()
        # All is done: taking apart what was imported would only take time.
        os._exit(end.code if isinstance(end.code, int) else 0)
    os._exit(0)


def serve() -> None:
    """Start commands, one after the other, until there are no more."""
    control = open(0, "rb", buffering=0)  # noqa: SIM115 - not sys.stdin, which commands must find unread
    for line in control:
        process = start(json.loads(line))
        print(process, flush=True)
        _, status = os.waitpid(process, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
