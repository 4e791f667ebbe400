"""Importing this makes ``pixelsem`` the package beside this folder, installed or not: that one is measured."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT))
