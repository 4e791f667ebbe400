"""Running the commands of a plan: each once what it goes by is there, some at a time."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO

from pixelsem.engine.plans import Plan, Step
from pixelsem.errors import EXIT_OK, OutputError
from pixelsem.files import reason


@dataclass(frozen=True)
class Ended:
    """How a step ended: its ``exit`` code (None: not run, as what it goes by is not there) and ``stage``, what it
    printed as its path. ``log`` holds what it said, where that was not shown.
    """

    step: Step
    exit: int | None
    stage: str | None
    seconds: float = 0.0
    log: Path | None = None

    @property
    def ok(self) -> bool:
        """Did all of it work?"""
        return self.exit == EXIT_OK


class PlanRun:
    """Runs a plan: ``program`` are the words that start pixelsem. With several ``jobs``, what commands say goes to
    files in ``logs/`` of the plan's run folder, else it is shown.
    """

    def __init__(self, plan: Plan, program: Sequence[str], jobs: int = 1) -> None:
        self.plan, self.program, self.jobs = plan, list(program), jobs
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock, self._stopped = Lock(), False

    def run(self) -> Generator[Ended, None, None]:
        """Run every step whose predecessors left a stage; yield how each ended, as it ends.

        One that failed for some of its images leaves a stage, and others go on from it. A step that takes several
        stages runs with those that there are. When the iteration is left early, commands that are running are
        ended (SIGTERM) and waited for. Raises :class:`OutputError` where logs cannot be written.
        """
        left = list(self.plan.steps)
        ended: dict[str, Ended] = {}
        pool = ThreadPoolExecutor(self.jobs, thread_name_prefix="step")
        running: set[Future[Ended]] = set()
        try:
            while left or running:
                ready = [step for step in left if all(name in ended for name in step.after)]
                left = [step for step in left if step not in ready]
                for step in ready:
                    stages = [stage for name in step.after if (stage := ended[name].stage) is not None]
                    if step.after and not stages:
                        ended[step.name] = Ended(step, None, None)
                        yield ended[step.name]
                    else:
                        running.add(pool.submit(self._one, step, stages))
                if running and not (ready and left):
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        result = future.result()
                        ended[result.step.name] = result
                        yield result
        finally:
            self._stop()
            pool.shutdown(cancel_futures=True)

    def _one(self, step: Step, stages: Sequence[str]) -> Ended:
        started = time.monotonic()
        log = self._log(step) if self.jobs > 1 else None
        try:
            with ExitStack() as stack:
                said: IO[bytes] | None = None
                if log is not None:
                    log.parent.mkdir(parents=True, exist_ok=True)
                    said = stack.enter_context(log.open("wb"))
                process = self._start([*self.program, *step.words, *stages], said)
                if process is None:
                    return Ended(step, None, None)
                out, _ = process.communicate()
        except OSError as error:
            raise OutputError(f"{log or self.program[0]}: {reason(error)}") from error
        with self._lock:
            self._running.discard(process)
        lines = out.decode("utf-8", "surrogateescape").splitlines()
        stage = lines[-1] if lines and (self.plan.folder / lines[-1]).is_dir() else None
        return Ended(step, process.returncode, stage, time.monotonic() - started, log)

    def _log(self, step: Step) -> Path:
        return self.plan.folder / self.plan.run / "logs" / (re.sub(r"[^\w.+-]", "-", step.name) + ".log")

    def _start(self, command: list[str], said: IO[bytes] | None) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._stopped:
                return None
            process = subprocess.Popen(
                command,
                cwd=self.plan.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=said,
            )
            self._running.add(process)
            return process

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()
