"""The class that stands for each image (what it is attacked away from), and where it was taken from."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path, PurePosixPath
from typing import Literal

from pixelsem.errors import InputError, PixelsemError
from pixelsem.files import one_line

Source = Literal["given", "predicted"]

#: What ``--labels`` takes beside a CSV file.
RULES = ("auto", "given", "predicted")


class Labels:
    """Says the label of an image: from its class folder, from a CSV file, or the model's own prediction."""

    def __init__(self, rule: str, class_names: tuple[str, ...]) -> None:
        """``rule`` is ``auto``, ``given``, ``predicted`` or a CSV file of ``id,class`` lines.

        Raises :class:`PixelsemError` for a file that is missing, names an unknown class or an image twice.
        """
        self._rule = rule
        self._names = class_names
        self._index = {name: number for number, name in enumerate(class_names)}
        self._table = {} if rule in RULES else self._read(Path(rule))

    def index(self, name: str, where: str) -> int:
        """Return the class number of ``name`` (a name, or a number); :class:`PixelsemError` where it is none."""
        if name in self._index:
            return self._index[name]
        # Not isdigit, which takes "²"; a number of thousands of digits is more than int() reads.
        if name.isdecimal() and len(name) < 10 and int(name) < len(self._names):
            return int(name)
        shown = ", ".join(self._names[:10]) + (", …" if len(self._names) > 10 else "")
        raise PixelsemError(f"{where}: {name!r} is none of the model's {len(self._names)} classes ({shown})")

    def of(self, image_id: str, predicted: int) -> tuple[int, Source]:
        """Return the class number of an image and where it comes from.

        Raises :class:`InputError` where a label must be given and is not.
        """
        if self._rule == "predicted":
            return predicted, "predicted"
        if self._table:
            if image_id not in self._table:
                raise InputError(f"{self._rule}: has no line for {image_id!r}")
            return self._table[image_id], "given"
        folders = reversed(PurePosixPath(image_id).parts[:-1])
        named = next((self._index[name] for name in folders if name in self._index), None)
        if named is not None:
            return named, "given"
        if self._rule == "given":
            raise InputError(f"{image_id}: no folder above it is named after a class; use --labels predicted or a CSV")
        return predicted, "predicted"

    def _read(self, file: Path) -> dict[str, int]:
        try:
            with file.open(newline="", encoding="utf-8-sig") as lines:
                reader = csv.reader(lines)
                rows = [(reader.line_num, row) for row in reader if row]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            advice = "it takes given, predicted or a CSV"
            raise PixelsemError(f"--labels: {file} cannot be read: {one_line(error)}; {advice}") from error
        if rows and rows[0][1] == ["id", "class"]:
            rows = rows[1:]
        table = {}
        for number, row in rows:
            if len(row) != 2:
                raise PixelsemError(f"{file}, line {number}: two columns expected (id,class), {len(row)} found")
            if row[0] in table:
                raise PixelsemError(f"{file}, line {number}: {row[0]!r} is there twice")
            table[row[0]] = self.index(row[1], f"{file}, line {number}")
        if not table:
            raise PixelsemError(f"{file}: holds no labels; it needs lines of id,class")
        return table


def labels_identity(rule: str) -> str:
    """Return what ``rule`` says, for a stage's identity: a CSV file is what it holds, wherever it lies."""
    path = Path(rule)
    return hashlib.sha256(path.read_bytes()).hexdigest() if rule not in RULES and path.is_file() else rule
