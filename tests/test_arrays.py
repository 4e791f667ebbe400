from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pixelsem.arrays import read_arrays


def archive_of(**members: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return made.getvalue()


def array_file(array: object) -> bytes:
    made = io.BytesIO()
    np.save(made, array)  # type: ignore[arg-type]
    return made.getvalue()


def test_arrays_are_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, best=np.arange(3.0), hits=np.eye(2, dtype=bool))
    found = read_arrays(path)
    assert set(found) == {"best", "hits"}
    np.testing.assert_array_equal(found["best"], [0, 1, 2])
    np.testing.assert_array_equal(found["hits"], np.eye(2, dtype=bool))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "No data"),
        (b"no archive", "pickled"),
        (array_file(np.arange(3)), "one array"),
        (archive_of(best=b"no array"), "no array"),
        (archive_of(best=array_file(np.array([{}], object))), "allow_pickle"),
        (archive_of(best=array_file(np.arange(3)).replace(b"(3,)", b"((3,")), "header|EOF|closed"),
        (
            archive_of(best=array_file(np.arange(3)).replace(b"(3,), }" + b" " * 14, b"(999999999999999,), }")),
            "allocate|large",
        ),
    ],
)
def test_what_holds_no_arrays_is_one_problem(tmp_path: Path, data: bytes, problem: str) -> None:
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ValueError, match=problem):
        read_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_with_any_damage_are_read_or_refused(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "a.npz"
    save(path, best=np.linspace(0, 1, 7), accepted=np.eye(4, 2, dtype=np.uint8))
    whole = path.read_bytes()
    draw, refused = random.Random(0), 0
    flipped = [whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :] for at in range(len(whole))]
    for data in flipped + [whole[:length] for length in range(0, len(whole), 3)]:
        path.write_bytes(data)
        try:
            read_arrays(path)
        except (OSError, ValueError):
            refused += 1
    assert refused > len(whole) // 2


def test_arrays_whose_headers_are_damaged_are_read_or_refused(tmp_path: Path) -> None:
    path, draw, refused = tmp_path / "a.npz", random.Random(0), 0
    whole = array_file(np.arange(6.0).reshape(2, 3))
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(128)
            data[at : at + draw.randint(1, 4)] = bytes(
                draw.choices(b"(){}[]'\"0123456789,-: .eELOl\0", k=draw.randint(0, 3))
            )
        path.write_bytes(archive_of(best=bytes(data)))
        try:
            read_arrays(path)
        except (OSError, ValueError):
            refused += 1
    assert refused > 700
