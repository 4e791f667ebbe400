"""Readers of manifests, stage files, options and plans, on random bytes and on good files with damage done to them.

They may refuse what they are given with a :class:`PixelsemError`, and do nothing else.
"""

from __future__ import annotations

# ruff: noqa: PT017 - whether a reader refuses depends on the example
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from attack_stages import info, record, write_stage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pixelsem.engine.plans import read_plan
from pixelsem.errors import PixelsemError, StageError
from pixelsem.stage import MANIFEST_FILE, STAGE_FILE, Stage
from pixelsem.yaml_files import dump_yaml, read_yaml

fuzz = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

#: What means something to one of the parsers.
TOKENS = [
    b"null", b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 400, b"\xff", b"\0", b"\\ud800", b"{", b"}", b"[", b"]", b'"',
    b":", b",", b"\n", b"\r\n", b"\xef\xbb\xbf", b"../", b"/etc", b"&a ", b"*a", b"!!python/name:os.system ", b"<<: ",
    b"? ", b"- ", b"---\n", b"#", b"\t", b"2026-13-45", b".nan", b"0x", b"|\n", b"[" * 3000,
]  # fmt: skip
edits = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, 40), st.sampled_from(TOKENS) | st.binary(max_size=8)),
    min_size=1,
    max_size=4,
)

PLAN = b"""
images: photos
options: {device: cpu, seed: 3}
segment: {grabcut: {rect: [1, 2, 3, 4]}}
models: {allconv: {}, other: {model: nin}}
regions: [original, foreground]
attacks:
  few: {attack: de, matrix: {pixels: [1, 3]}, targeted: true}
then:
  tables: {command: evaluate, confidence: 0.9}
"""


class AnyCommand:
    """Stands for a command line that knows a few options."""

    def options(self, command: Sequence[str]) -> frozenset[str]:
        if command[0] not in ("segment", "attack", "evaluate"):
            raise PixelsemError(f"no command {command[0]}")
        return frozenset({"device", "seed", "rect", "model", "pixels", "targeted", "region", "run", "method", "masks"})

    def arguments(self, command: Sequence[str], options: Mapping[str, Any]) -> list[str]:
        return [f"--{name}={value}" for name, value in options.items()]


def damaged(whole: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """Return ``whole`` with pieces replaced: (where, how many bytes, by what)."""
    for place, length, piece in changes:
        place %= len(whole) + 1
        whole = whole[:place] + piece + whole[place + length :]
    return whole


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    records = [record(f"cat/{number}.png", to="dog" if number else None) for number in range(3)]
    return write_stage(tmp_path / "stage", info(), *records)


def read_records(stage: Path) -> None:
    """Read a stage; every line is a record or a refusal that names it, and what is taken stays inside."""
    try:
        opened = Stage.open(stage)
        found = list(opened.scan())
    except PixelsemError as error:
        assert str(error).startswith(str(stage))
        return
    for each in found:
        if isinstance(each, StageError):
            assert f"{MANIFEST_FILE}, line " in str(each)
            assert "\n" not in str(each)
        else:
            hash(each.key)


@fuzz
@given(changes=edits)
def test_a_damaged_manifest(stage: Path, changes: list[tuple[int, int, bytes]]) -> None:
    manifest = stage / MANIFEST_FILE
    whole = manifest.read_bytes()
    try:
        manifest.write_bytes(damaged(whole, changes))
        read_records(stage)
    finally:
        manifest.write_bytes(whole)


@fuzz
@given(data=st.binary(max_size=300))
def test_a_manifest_of_random_bytes(stage: Path, data: bytes) -> None:
    (stage / MANIFEST_FILE).write_bytes(data)
    read_records(stage)


@fuzz
@given(changes=edits)
def test_a_damaged_stage_file(stage: Path, changes: list[tuple[int, int, bytes]]) -> None:
    file = stage / STAGE_FILE
    whole = file.read_bytes()
    try:
        file.write_bytes(damaged(whole, changes))
        read_records(stage)
    finally:
        file.write_bytes(whole)


def test_the_good_files_are_taken(stage: Path, tmp_path: Path) -> None:
    """Damage is done to files that are whole: what is refused is refused for the damage."""
    assert len(list(Stage.open(stage).records())) == 3
    plan = tmp_path / "plan.yaml"
    plan.write_bytes(PLAN.replace(b", confidence: 0.9", b""))
    assert len(read_plan(plan, AnyCommand()).steps) == 10


@fuzz
@given(data=st.binary(max_size=200) | st.builds(damaged, st.just(PLAN), edits))
def test_yaml(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(data)
    try:
        values = read_yaml(path)
    except PixelsemError as error:
        assert str(error).startswith(str(path))
        assert "\n" not in str(error)
    else:
        path.write_text(dump_yaml(values))  # plain data, which can be written again


@fuzz
@given(changes=edits)
def test_a_damaged_plan(tmp_path: Path, changes: list[tuple[int, int, bytes]]) -> None:
    path = tmp_path / "plan.yaml"
    path.write_bytes(damaged(PLAN, changes))
    try:
        plan = read_plan(path, AnyCommand())
    except PixelsemError as error:
        assert str(error).startswith(str(path))
    else:
        assert all(isinstance(word, str) for step in plan.steps for word in step.words)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@fuzz
@given(
    values=st.dictionaries(
        st.sampled_from(["images", "run", "options", "segment", "models", "regions", "attacks", "then"]), plain
    )
)
def test_a_plan_of_other_types(tmp_path: Path, values: dict[str, Any]) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(dump_yaml({"images": "photos", "attacks": {"de": {}}} | values), encoding="utf-8")
    try:
        read_plan(path, AnyCommand())
    except PixelsemError as error:
        assert str(error).startswith(str(path))
