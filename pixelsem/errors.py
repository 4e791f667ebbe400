"""What can go wrong, and the exit code that says so. The only place that names exit codes."""

from __future__ import annotations

EXIT_OK = 0
EXIT_SOME_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # by Ctrl-C: 128 + SIGINT
EXIT_TERMINATED = 143  # by a scheduler: 128 + SIGTERM


def is_out_of_memory(error: BaseException) -> bool:
    """Tell a lack of memory from any other error: of Python and NumPy, of PyTorch on the host and on a GPU.

    PyTorch has a class for the latter only; its allocator on the host raises a RuntimeError that says so.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "alloc" in str(error).lower()


class PixelsemError(Exception):
    """A problem to report in one line: what is wrong, with which file, and what to do.

    The command line prints ``str(error)`` on stderr and exits with :attr:`exit_code`.
    """

    exit_code = EXIT_USAGE


class InputError(PixelsemError):
    """One input (an image, a mask) cannot be used; the run goes on with the rest."""

    exit_code = EXIT_SOME_FAILED


class StageError(PixelsemError):
    """A stage folder, its settings or a manifest line cannot be used as asked."""


class ModelError(PixelsemError):
    """A classifier, its weights or its class names cannot be used as asked."""


class ClassCountError(ModelError):
    """A network has another number of logits, ``count``, than there are classes."""

    def __init__(self, message: str, count: int) -> None:
        super().__init__(message, count)
        self.count = count

    def __str__(self) -> str:
        return str(self.args[0])


class OutputError(PixelsemError):
    """Something could not be written (read-only folder, full disk). What was written before stays valid."""

    exit_code = EXIT_SOME_FAILED


class WorkerError(PixelsemError):
    """No process is left that could do the work. What was written before stays valid."""

    exit_code = EXIT_SOME_FAILED
