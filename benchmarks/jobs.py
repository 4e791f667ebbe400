"""Small jobs of every command that writes: their inputs, how one is started and disturbed, and whether what it left is
whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from checkout import ROOT
from msgspec import structs
from numpy.typing import NDArray

from pixelsem.files import is_temporary
from pixelsem.images import read_image, resize_image, write_image
from pixelsem.locks import LOCK_FILE
from pixelsem.stage import MANIFEST_FILE, STAGE_FILE, Stage
from pixelsem.yaml_files import read_yaml

#: What a command may say of when it ran, or on what; everything else is compared.
_TIMES = {"wall_time", "seconds"}
_CIRCUMSTANCES = {"resumed"}

_PATIENCE = 600.0  # seconds


@dataclass(frozen=True)
class Job:
    """A command of ``group`` (what it stands for), to be run in the folder of its inputs.

    ``words`` come behind ``pixelsem``; in them ``OUT`` is the place of the result, ``leaves`` below the job's own
    folder. ``begins`` is the file there with which the work begins, behind start-up and imports (None: at once);
    ``alike`` the job whose result is the same, if it is not its own; ``needs`` are those whose results it takes.
    """

    name: str
    group: str
    words: tuple[str, ...]
    leaves: str = "stage"
    begins: str | None = f"stage/{STAGE_FILE}"
    alike: str | None = None
    needs: tuple[str, ...] = ()

    def command(self, folder: Path) -> list[str]:
        """Return the words behind ``pixelsem`` of a command that leaves its result in ``folder``."""
        return [str(folder / self.leaves) if word == "OUT" else word for word in self.words]

    def has_begun(self, folder: Path) -> bool:
        """Has the work begun? Of a manifest its first record counts."""
        try:
            return self.begins is None or (folder / self.begins).stat().st_size > 0
        except FileNotFoundError:
            return False


def make_jobs(images: int = 16) -> list[Job]:
    """Return the jobs over the inputs that :func:`make_inputs` makes, in an order in which each finds its inputs."""
    few = ("--limit", str(images), "-o", "OUT", "-q", "--device", "cpu", "--in-flight", "4")
    grabcut = ("--method", "grabcut", "--upscale", "0", "--iterations", "3")
    search = ("attack", "de", "images", "--population", "20", "--generations", "5", "--no-early-stop")
    scoring = ("--evaluator", "incremental", "--batch-size", "80", *few)
    gradient = ("attack", "pgd", "images", "--steps", "6", *few)
    manifest = f"stage/{MANIFEST_FILE}"
    tables = ("evaluate", "success", "made/attack-de/stage", "made/attack-pgd/stage", "-o", "OUT", "-q")
    report = ("evaluate", "report", "made/attack-de/stage", "made/attack-pgd/stage", "-o", "OUT", "-q", "--title", "x")
    train = (
        *("defend", "train", "--data", "data", "--model", "network.py:make", "-o", "OUT", "-q", "--device", "cpu"),
        *("--method", "fast", "--average", "0.9", "--epochs", "3", "--batch", "32", "--robust-sample", "40"),
    )
    return [
        Job("segment", "segment", ("segment", "photos", *grabcut, "-o", "OUT", "-q")),
        Job("attack-de", "attack", (*search, *scoring)),
        Job("attack-pgd", "attack", gradient),
        # The other processes start after stage.yaml is written, which takes longer than the work itself.
        Job(
            "attack-two",
            "attack",
            (*search, *scoring, "--device", "cpu,cpu"),
            begins=manifest,
            alike="attack-de",
            needs=("attack-de",),
        ),
        Job("tables", "evaluate", tables, leaves="tables", begins=None, needs=("attack-de", "attack-pgd")),
        Job("report", "evaluate", report, leaves="page.html", begins=None, needs=("attack-de", "attack-pgd")),
        Job("defend", "defend", ("defend", "tvm", "images", "-o", "OUT", "-q", "--device", "cpu")),
        Job("train", "train", train),
    ]


def make_inputs(folder: Path, *, images: int = 100, photos: int = 60, train: int = 400, test: int = 60) -> None:
    """Put images into ``folder``: cut from the sample images, the same each time.

    ``images`` of 32×32 pixels in one folder, ``photos`` of 96×96, and ``data/train`` and ``data/test`` of 32×32 by
    class, beside a network's code.
    """
    make_images(folder / "images", images, 32, 0)
    make_images(folder / "photos", photos, 96, 1)
    make_images(folder / "data" / "train", train, 32, 2, by_class=True)
    make_images(folder / "data" / "test", test, 32, 3, by_class=True)
    shutil.copyfile(ROOT / "benchmarks" / "small_network.py", folder / "network.py")


def make_images(folder: Path, count: int, size: int, seed: int, *, by_class: bool = False) -> None:
    """Write ``count`` random square cuts of the sample images, ``size`` pixels a side."""
    files = sorted((ROOT / "sample_images" / "images").glob("*/*.*"))
    sources = {file: read_image(file) for file in files}
    random = np.random.default_rng(seed)
    for number in range(count):
        file = files[number % len(files)]
        name = f"{file.parent.name}/{number:05}.png" if by_class else f"{number:05}.png"
        write_image(folder / name, resize_image(_cut(sources[file], random), (size, size), "lanczos"))


def _cut(pixels: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    side = int(random.integers(min(height, width) // 2, min(height, width) + 1))
    top, left = int(random.integers(height - side + 1)), int(random.integers(width - side + 1))
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of jobs: this checkout, one thread, and a cache of their own."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    own = {"PIXELSEM_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "1000"}
    return {**os.environ, **one, **own}


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, what it said, and ``work``, the seconds it computed since its work began."""

    code: int
    stderr: str
    work: float


@dataclass(frozen=True, eq=False)
class Curves:
    """What a search's history holds. Floats are equal to within ``TOLERANCE``, all else is equal exactly.

    How a sum of floats is rounded depends on what else is in a batch, and after an interruption that is what was left.
    """

    arrays: dict[str, NDArray[Any]]

    #: Of the value, and of 1: ten to a hundred roundings of a float32.
    TOLERANCE: ClassVar = {"rtol": 1e-5, "atol": 1e-6}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Curves) or self.arrays.keys() != other.arrays.keys():
            return False
        return all(self._same(array, other.arrays[name]) for name, array in self.arrays.items())

    def _same(self, one: NDArray[Any], other: NDArray[Any]) -> bool:
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        if one.dtype.kind != "f":
            return np.array_equal(one, other)
        return np.allclose(other, one, **self.TOLERANCE, equal_nan=True)


class Starter:
    """Starts jobs over some inputs, one at a time (see starter.py). A context manager."""

    def __init__(self, inputs: Path) -> None:
        self._inputs = inputs
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Starter:
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "starter.py")], cwd=self._inputs, env=environment(self._inputs),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def run(self, job: Job, folder: Path, *, stop: int | None = None, after: float = 0.0) -> Ended:
        """Run a job into ``folder``; with ``stop``, send it that signal once it computed so many seconds.

        They are counted from when its work began, and in processor time, which does not depend on what else the
        machine does. Ctrl-C reaches all of its processes, as from a terminal, other signals the first one alone.
        Raises :class:`RuntimeError` where one of them lives on.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        said = self._inputs / "stderr"
        said.write_bytes(b"")
        self._process.stdin.write(json.dumps({"words": job.command(folder), "stderr": str(said)}).encode() + b"\n")
        process = int(self._process.stdout.readline())
        begun, now = None, 0.0
        try:
            for _ in _patiently():
                now = computed(process) or now
                if begun is None and job.has_begun(folder):
                    begun = now
                if select.select([self._process.stdout], [], [], 0)[0]:
                    break
                if stop is not None and begun is not None and now - begun >= after:
                    (os.killpg if stop == signal.SIGINT else os.kill)(process, stop)
                    stop = None
            code = int(self._process.stdout.readline())
            for _ in _patiently():
                if not alive(process):
                    break
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
        return Ended(code, said.read_text(encoding="utf-8"), now - (begun or 0.0))


def _patiently() -> Iterator[None]:
    """Come back every few milliseconds; raise :class:`RuntimeError` where that takes too long."""
    started = time.monotonic()
    while time.monotonic() - started < _PATIENCE:
        yield
        time.sleep(0.003)
    raise RuntimeError(f"waited for {_PATIENCE:.0f} s in vain")


def computed(process: int) -> float | None:
    """Return the seconds that all threads of a process computed, None where it has ended (Linux)."""
    try:
        return time.clock_gettime((~process << 3) | 2)  # what clock_getcpuclockid() makes of it
    except OSError:
        return None


def alive(group: int) -> list[int]:
    """Return the processes of a group that still run; those that are dead but not yet asked after are none."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):  # it ended meanwhile
            continue
        if int(its_group) == group and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def contents(folder: Path) -> dict[str, Any]:
    """Return every file by name with what must be the same after any interruption, read by those who will read it.

    Files count by their bytes, manifests as sets of records, histories as :class:`Curves`, ``stage.yaml`` and
    checkpoints by what they hold but for times and devices; a network's page likewise. Raises what readers raise.
    """
    return {
        file.relative_to(folder).as_posix(): _content(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not is_temporary(file.name)
    }


def _content(file: Path) -> Any:
    if file.name == STAGE_FILE:
        return _timeless(read_yaml(file))
    if file.name == MANIFEST_FILE and (file.parent / STAGE_FILE).exists():
        return records(file.parent)
    if file.suffix == ".pt":
        return _timeless(torch.load(file, weights_only=True))
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            return Curves(dict(arrays))
    if file.name == LOCK_FILE:
        return None
    if file.suffix == ".md" and "## Epochs" in (text := file.read_text(encoding="utf-8")):
        head, _, epochs = text.partition("## Epochs")
        return [head, *(line.rpartition("|")[0].rpartition("|")[0] for line in epochs.splitlines())]
    return hashlib.sha256(file.read_bytes()).hexdigest()


def records(stage: Path) -> set[str]:
    """Return a stage's records as lines, without times."""
    return {json.dumps(_timeless(_plain(record)), sort_keys=True) for record in Stage.open(stage).records()}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(structs.asdict(value), default=structs.asdict))


def _timeless(value: Any) -> Any:
    """Return plain data without what says when and on what it was made; tensors as bytes."""
    if isinstance(value, Mapping):
        left_out = _TIMES | _CIRCUMSTANCES | {"device"}
        return {name: _timeless(item) for name, item in value.items() if name not in left_out}
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes())
    if isinstance(value, list | tuple):
        return [_timeless(item) for item in value]
    return value


def temporaries(folder: Path) -> list[str]:
    """Return the temporary files that were left."""
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if is_temporary(file.name)]


def differences(expected: Path, found: Path) -> list[str]:
    """Say what differs between two results: nothing, where one was interrupted and resumed and the other was not."""
    here, there = contents(expected), contents(found)
    said = [f"{name}: missing" for name in here.keys() - there.keys()]
    said += [f"{name}: not expected" for name in there.keys() - here.keys()]
    said += [f"{name}: differs" for name in here.keys() & there.keys() if here[name] != there[name]]
    return sorted(said)


def damage(expected: Path, found: Path) -> list[str]:
    """Say what is wrong with a result that was interrupted: everything there must be whole, and right.

    Every file is that of the finished result or a temporary one, every record one of its records, and what a training
    holds so far can be read.
    """
    here, said = contents(expected), []
    for name, content in contents(found).items():
        file = Path(name)
        if file.name == LOCK_FILE:
            continue
        if name not in here:
            said.append(f"{name}: not expected")
        elif file.name == STAGE_FILE:
            said += [] if content["identity"] == here[name]["identity"] else [f"{name}: of another run"]
        elif file.name == MANIFEST_FILE:
            empty = not isinstance(content, set)  # stage.yaml was still to come
            said += [] if empty or content <= here[name] else [f"{name}: holds other records"]
        elif file.suffix == ".pt":
            log = content["log"]
            said += [] if log == here[name]["log"][: len(log)] else [f"{name}: holds other epochs"]
        elif content != here[name]:
            said.append(f"{name}: differs")
    return said


def problems(stderr: str) -> list[str]:
    """Return the lines of a quiet command that say what is wrong, but for a lock that was taken over."""
    return [line for line in stderr.splitlines() if "which is gone, was taken over" not in line]
