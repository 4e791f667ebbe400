"""``python -m pixelsem``: the same as the ``pixelsem`` command."""

from pixelsem.cli.app import main

main()
