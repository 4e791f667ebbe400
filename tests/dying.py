"""A job for a worker process that dies of it; imports nothing, so that the worker is soon there."""

import os


def die(*_: object) -> None:
    os._exit(1)
