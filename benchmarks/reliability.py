"""What becomes of a command that is killed, stopped, or out of disk; and what memory it takes for many images.

Runs small jobs of every command that writes (see jobs.py), disturbs them and runs them again: the result must be that
of an undisturbed run. Full and read-only disks need root on Linux, and are left out elsewhere.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import checkout  # noqa: F401
import torch
from common import Row, names, note, numbers, show, write_rows
from disks import AMPLE, Disk, can_mount, pages, small_disk
from jobs import (
    Ended,
    Job,
    Starter,
    damage,
    differences,
    environment,
    make_images,
    make_inputs,
    make_jobs,
    problems,
    records,
    temporaries,
)
from machine import describe

from pixelsem.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_SOME_FAILED, EXIT_TERMINATED
from pixelsem.locks import LOCK_FILE
from pixelsem.report.tables import Column, Table
from pixelsem.stage import STAGE_FILE

#: What can be measured, in order.
PARTS = ("kills", "signals", "disks", "memory")

#: How each signal ends a command: its exit code, and how the line begins that it says.
ENDINGS = {
    signal.SIGKILL: (-signal.SIGKILL, None),
    signal.SIGINT: (EXIT_INTERRUPTED, "pixelsem: interrupted; what is done stays done"),
    signal.SIGTERM: (EXIT_TERMINATED, "pixelsem: terminated; what is done stays done"),
}

#: Disks with these shares of the room that the result needs: too small to begin, and full in the middle.
SHARES = (0.0, 0.6)

#: Times that a job may be done before the signal comes, in a row.
_LATE = 10

#: Starts a command and says what its memory reached: a process of its own, as a child's peak includes its parent's.
_LAUNCHER = """
import os, resource, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
print(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(os.waitstatus_to_exitcode(status) & 255)
"""


@dataclass
class Lab:
    """A folder with inputs and an undisturbed result of every job that was asked for."""

    folder: Path
    random: Random
    whole: dict[str, Ended] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.starter = Starter(self.inputs)

    @property
    def inputs(self) -> Path:
        """Where the inputs are; commands run there."""
        return self.folder / "inputs"

    def place(self, name: str) -> Path:
        """Return a folder for results, all of them as far from the inputs: stages name these relative to themselves."""
        return self.inputs / "made" / name

    def undisturbed(self, job: Job) -> Path:
        """Return the folder of a job's undisturbed result."""
        return self.place(job.alike or job.name)

    def run(self, job: Job, folder: Path, *, stop: int | None = None, after: float = 0.0) -> Ended:
        """See :meth:`jobs.Starter.run`."""
        return self.starter.run(job, folder, stop=stop, after=after)

    def prepare(self, every: Sequence[Job], names: Sequence[str]) -> list[Job]:
        """Return the jobs of these names; they and what they need are done once, and it is learnt how long it takes."""
        jobs = [job for job in every if job.name in names]
        needed = {name for job in jobs for name in job.needs}
        for job in every:
            if job not in jobs and job.name not in needed:
                continue
            ended = self.run(job, self.place(job.name))
            if ended.code != EXIT_OK:
                raise RuntimeError(f"{job.name} fails undisturbed: {ended.stderr}")
            self.whole[job.name] = ended
            note(f"{job.name}: {ended.work:.2f} s of work")
        return jobs


@dataclass
class Trial:
    """One disturbance: when it came (share of the work), how much was done, and what was wrong (nothing)."""

    share: float
    done: int
    temporaries: int
    said: list[str]


def disturb(lab: Lab, job: Job, number: signal.Signals, share: float, folder: Path) -> Trial | None:
    """Stop a job at this share of its work, look at what is there, and let it go on; None where it came too late."""
    stopped = lab.run(job, folder, stop=number, after=share * lab.whole[job.name].work)
    whole = lab.undisturbed(job)
    if not differences(whole, folder):
        return None
    said = _ending(stopped, number) + damage(whole, folder)
    left = temporaries(folder)
    if number != signal.SIGKILL:
        said += [f"{name}: left behind" for name in left]
    trial = Trial(share, count(job, folder), len(left), said)
    resumed = lab.run(job, folder)
    if resumed.code != EXIT_OK:
        trial.said.append(f"the same command ends with {resumed.code}: {resumed.stderr}")
        return trial
    trial.said += [f"{line!r} was said" for line in problems(resumed.stderr)]
    trial.said += differences(whole, folder)
    if job.leaves == "stage":
        trial.said += [f"{name}: not removed" for name in temporaries(folder)]
    return trial


def _ending(ended: Ended, number: signal.Signals) -> list[str]:
    """Say where a stopped command did not end as documented."""
    code, line = ENDINGS[number]
    said = [] if ended.code == code else [f"exit code {ended.code}, not {code}"]
    if line is not None:
        said += [f"{other!r} was said" for other in ended.stderr.splitlines() if not other.startswith(line)]
        said += [] if ended.stderr.count(line) == 1 else [f"{line!r} was not said once"]
    return said


def count(job: Job, folder: Path) -> int:
    """Return how many records, or else files, a result holds."""
    if (folder / "stage" / STAGE_FILE).exists():
        return len(records(folder / "stage"))
    return sum(path.is_file() and path.name != LOCK_FILE for path in folder.rglob("*")) - len(temporaries(folder))


def stop_at_random(lab: Lab, job: Job, number: signal.Signals, times: int) -> Row:
    """Stop a job so many times, at moments drawn from all of its work."""
    trials: list[Trial] = []
    late = 0
    while len(trials) < times:
        folder = lab.place(f"{number.name}-{job.name}-{len(trials)}-{late}")
        trial = disturb(lab, job, number, lab.random.random(), folder)
        if trial is None:
            late += 1
            if late > _LATE * times:
                raise RuntimeError(f"{job.name} is always done before {number.name} comes")
            continue
        trials.append(trial)
    return {
        "job": job.name, "group": job.group, "what": number.name, "times": times,
        "same": sum(not trial.said for trial in trials), "said": [line for trial in trials for line in trial.said],
        "moments": [round(trial.share, 3) for trial in trials], "done": [trial.done for trial in trials],
        "of": count(job, lab.undisturbed(job)), "temporaries": [trial.temporaries for trial in trials],
        "work": round(lab.whole[job.name].work, 2), "too_late": late,
    }  # fmt: skip


def share_out(jobs: Sequence[Job], times: int) -> Iterator[tuple[Job, int]]:
    """Yield how often each job is killed, so that every command is as often."""
    for group in dict.fromkeys(job.group for job in jobs):
        own = [job for job in jobs if job.group == group]
        for number, job in enumerate(own):
            share = times // len(own) + (number < times % len(own))
            if share:
                yield job, share


def measure_kills(lab: Lab, jobs: Sequence[Job], times: int) -> Iterator[Row]:
    """Kill every command so many times."""
    for job, share in share_out(jobs, times):
        yield stop_at_random(lab, job, signal.SIGKILL, share)


def measure_signals(lab: Lab, jobs: Sequence[Job], times: int) -> Iterator[Row]:
    """Stop every command so many times with each of the signals that ask for it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        for job, share in share_out(jobs, times):
            yield stop_at_random(lab, job, number, share)


def measure_disks(lab: Lab, jobs: Sequence[Job]) -> Iterator[Row]:
    """Fill the disk under every job, and make it read-only."""
    if not can_mount():
        note("disks: left out; to mount small ones takes root on Linux")
        return
    for job in jobs:
        for share in SHARES:
            with small_disk(lab.place(f"disk-{job.name}-{share:g}")) as disk:
                yield _row(job, f"disk with {100 * share:.0f} % of the room", fill(lab, job, disk, share))
        with small_disk(lab.place(f"disk-{job.name}-closed")) as disk:
            yield _row(job, "read-only disk", close(lab, job, disk))


def fill(lab: Lab, job: Job, disk: Disk, share: float) -> list[str]:
    """Run a job on a disk that is too small, then on a larger one; say what was wrong."""
    whole = lab.undisturbed(job)
    disk.resize(int(share * pages(whole)))
    said = _refused(lab.run(job, disk.path), "No space left on device") + damage(whole, disk.path)
    said += [f"{name}: left behind" for name in temporaries(disk.path)]
    disk.resize(AMPLE)
    return said + _goes_on(lab, job, disk.path)


def close(lab: Lab, job: Job, disk: Disk) -> list[str]:
    """Make a disk read-only, before the start and in the middle; say what was wrong."""
    disk.protect(closed=True)
    said = _refused(lab.run(job, disk.path), "Read-only file system")
    disk.protect(closed=False)
    said += [f"{path}: made" for path in disk.path.iterdir()]
    lab.run(job, disk.path, stop=signal.SIGTERM, after=0.5 * lab.whole[job.name].work)
    held = count(job, disk.path)
    disk.protect(closed=True)
    said += _refused(lab.run(job, disk.path), "Read-only file system")
    disk.protect(closed=False)
    said += [] if count(job, disk.path) == held else ["what is there changed"]
    return said + _goes_on(lab, job, disk.path)


def _refused(ended: Ended, reason: str) -> list[str]:
    """Say where a command whose disk cannot be written did not end as documented: with one line."""
    said = [] if ended.code == EXIT_SOME_FAILED else [f"exit code {ended.code}, not {EXIT_SOME_FAILED}"]
    lines = ended.stderr.splitlines()
    if len(lines) != 1 or not lines[0].startswith("pixelsem: ") or reason not in lines[0]:
        said.append(f"{ended.stderr!r} was said")
    return said


def _goes_on(lab: Lab, job: Job, folder: Path) -> list[str]:
    ended = lab.run(job, folder)
    if ended.code != EXIT_OK:
        return [f"the same command ends with {ended.code}: {ended.stderr}"]
    return differences(lab.undisturbed(job), folder)


def _row(job: Job, what: str, said: list[str]) -> Row:
    return {"job": job.name, "group": job.group, "what": what, "times": 1, "same": int(not said), "said": said}


_TINY = ("-q", "--population", "8", "--generations", "1", "--device", "cpu")

#: By name: the words of commands whose memory is measured, over N images.
MEMORY: dict[str, tuple[str, ...]] = {
    "attack de --model allconv": (
        *("attack", "de", "IMAGES", "-o", "N/allconv", "--model", "allconv", *_TINY),
        *("--evaluator", "incremental", "--batch-size", "512"),
    ),
    # A network that takes no time leaves what the rest of an attack holds.
    "attack de --model small_network.py:make": (
        *("attack", "de", "IMAGES", "-o", "N/small", "--model", "network.py:make", *_TINY),
        *("--evaluator", "dense", "--batch-size", "512"),
    ),
    "evaluate success": ("evaluate", "success", "N/small", "-o", "N/tables", "-q"),
    "evaluate report": ("evaluate", "report", "N/small", "-o", "N/page.html", "-q"),
    "defend jpeg": ("defend", "jpeg", "IMAGES", "-o", "N/defend", "-q"),
    "segment --method grabcut": (
        *("segment", "IMAGES", "--method", "grabcut", "-o", "N/segment", "-q"),
        *("--upscale", "0", "--iterations", "1"),
    ),
}


def measure_memory(lab: Lab, commands: Sequence[str], counts: Sequence[int]) -> Iterator[Row]:
    """Run commands over more and more images."""
    make_images(lab.inputs / "many", max(counts), 32, 4)
    for name in commands:
        peaks = {}
        for images in counts:
            peaks[images] = peak_memory([filled(word, images) for word in MEMORY[name]], images, lab)
            note(f"{name}, {images} images: {peaks[images] / 2**20:.0f} MiB")
        first, last = peaks[counts[0]], peaks[counts[-1]]
        yield {
            "job": name, "group": name.split()[0], "what": "memory", "peak_bytes": peaks,
            "growth": last / first - 1, "bytes_per_image": (last - first) / max(1, counts[-1] - counts[0]),
        }  # fmt: skip


def filled(word: str, images: int) -> str:
    """Put the number of images into a word of :data:`MEMORY`."""
    return f"memory/{images}/{word[2:]}" if word.startswith("N/") else word


def peak_memory(words: Sequence[str], images: int, lab: Lab) -> int:
    """Return the bytes that a command over the first ``images`` holds in memory at most (its first process)."""
    command = [word for each in words for word in (("many", "--limit", str(images)) if each == "IMAGES" else (each,))]
    done = subprocess.run(
        [sys.executable, "-c", _LAUNCHER, sys.executable, "-m", "pixelsem", *command], cwd=lab.inputs, check=False,
        env=environment(lab.inputs), stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != EXIT_OK:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return int(done.stdout.splitlines()[-1])


def make_table(rows: Sequence[Row]) -> Table:
    """Return what was stopped, by command and by how, for people."""
    columns = (
        Column("group", "Command"),
        Column("what", "Disturbed by"),
        Column("jobs", "Jobs"),
        Column("times", "Times", "count"),
        Column("same", "As undisturbed", "count"),
    )
    held: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["what"] != "memory":
            held.setdefault((row["group"], row["what"]), []).append(row)
    cells = [
        [*key, ", ".join(row["job"] for row in own), sum(r["times"] for r in own), sum(r["same"] for r in own)]
        for key, own in held.items()
    ]
    return Table("reliability", "Disturbed and resumed", columns, cells)


def make_memory_table(rows: Sequence[Row]) -> Table:
    """Return what memory commands take, for people."""
    own = [row for row in rows if row["what"] == "memory"]
    counts = [int(images) for images in (own[0]["peak_bytes"] if own else ())]
    columns = (
        Column("job", "Command"),
        *(Column(f"of_{images}", f"MiB, {images:,} images", "number", 0) for images in counts),
        Column("growth", "Growth", "percent", 1),
        Column("per_image", "KiB per image", "number", 2),
    )
    cells = [
        [row["job"], *(peak / 2**20 for peak in row["peak_bytes"].values()), row["growth"],
         row["bytes_per_image"] / 1024]
        for row in own
    ]  # fmt: skip
    return Table("memory", "Peak resident memory", columns, cells)


@contextmanager
def laboratory(folder: Path | None, seed: int, **inputs: int) -> Iterator[Lab]:
    """Make the inputs (see :func:`jobs.make_inputs`) in ``folder``, which must be new, or in a temporary one."""
    with tempfile.TemporaryDirectory(prefix="pixelsem-reliability-") as temporary:
        lab = Lab(folder or Path(temporary), Random(seed))
        make_inputs(lab.inputs, **inputs)
        with lab.starter:
            yield lab


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show tables and write the list of results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    every = make_jobs()
    parser.add_argument("--parts", type=names, default=list(PARTS), help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--jobs", type=names, default=[job.name for job in every], help="jobs to disturb, by name")
    parser.add_argument("--kills", type=int, default=10, help="kills per command (default: 10)")
    parser.add_argument("--signals", type=int, default=1, help="times per command for SIGINT and SIGTERM (default: 1)")
    parser.add_argument("--commands", type=names, default=list(MEMORY), help="commands whose memory is measured")
    parser.add_argument("--images", type=numbers, default=[100, 1000, 5000], help="for memory: 100,1000,5000")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--folder", type=Path, help="new folder for all that is made (default: temporary)")
    parser.add_argument("--json", metavar="FILE|-", help="write the list of results there; - is standard output")
    options = parser.parse_args(arguments)
    for name, known in (("part", PARTS), ("job", [job.name for job in every]), ("command", list(MEMORY))):
        for wrong in set(getattr(options, name + "s")) - set(known):
            parser.error(f"no {name} {wrong!r}; there are {', '.join(known)}")
    torch.set_num_threads(1)
    jobs: list[Job] = []
    rows: list[Row] = []
    with laboratory(options.folder, options.seed) as lab:
        parts: dict[str, Callable[[], Iterator[Row]]] = {
            "kills": lambda: measure_kills(lab, jobs, options.kills),
            "signals": lambda: measure_signals(lab, jobs, options.signals),
            "disks": lambda: measure_disks(lab, jobs),
            "memory": lambda: measure_memory(lab, options.commands, options.images),
        }
        if set(options.parts) - {"memory"}:
            jobs = lab.prepare(every, options.jobs)
        for part in options.parts:
            for row in parts[part]():
                rows.append(row | {"machine": describe(torch.device("cpu"))})
                _tell(rows[-1])
                if options.json not in (None, "-"):
                    write_rows(options.json, rows)  # what is measured stays measured
    for table in (make_table(rows), make_memory_table(rows)):
        if table.rows:
            show(table)
    write_rows(options.json, rows)
    return int(any(row.get("said") for row in rows))


def _tell(row: Row) -> None:
    if row["what"] != "memory":
        note(f"{row['job']}, {row['what']}: {row['same']} of {row['times']} as undisturbed")
        for line in row["said"]:
            note(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
