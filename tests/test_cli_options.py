"""Options made from settings, and the YAML files that fill them, through a small command line of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from pixelsem.cli.console import Console
from pixelsem.cli.groups import RootGroup
from pixelsem.cli.options import OutputOptions, SelectionOptions, add_defaults, command_name, expand
from pixelsem.errors import PixelsemError
from pixelsem.settings import Settings, option
from pixelsem.stage import Stage, StageInfo


@dataclass(frozen=True)
class Search(Settings):
    count: int = option(3, "How many.", low=1, high=10)
    rate: float = option(0.5, "How fast.", low=0, high=1)
    careful: bool = option(True, "Whether to look twice.")
    loud: bool = option(False, "Whether to shout.", flag="--loud")
    brief: bool = option(False, "Whether to be short.", flag="-b")
    way: Literal["left", "right"] = option("left", "Where to.")
    place: Path | None = option(None, "A file.", flag="-p")
    span: tuple[float, float] = option((0.5, 1.0), "From, to.", low=0, high=2)
    mean: tuple[float, float, float] | None = option(None, "Three numbers.")
    sizes: tuple[int, ...] = option((1, 2), "Any number of them.")
    most: int | None = option(None, "At most.", low=1)
    label: str = option("auto", "A word.", metavar="WORD")
    token: str | None = option(None, "From the environment too.", env="PIXELSEM_TEST_TOKEN")

    def check(self) -> None:
        if self.span[0] > self.span[1]:
            raise PixelsemError("--span: the wrong way round")


@dataclass(frozen=True)
class Shared(Settings):
    count: int = option(3, "How many.", low=1, high=10)
    other: int = option(0, "Something else.")


PRESETS: dict[str, dict[str, Any]] = {"paper": {"count": 7, "span": (0.25, 0.3333333333333333), "rate": 0.125}}


def load_preset(context: typer.Context, value: str | None) -> str | None:
    if value is not None:
        add_defaults(context, PRESETS[value], first=False)
    return value


def search(
    *,
    context: typer.Context,
    images: Annotated[list[Path] | None, typer.Argument(help="Folders.")] = None,
    preset: Annotated[str | None, typer.Option(is_eager=True, callback=load_preset)] = None,
    settings: Search,
    shared: Shared,
) -> None:
    values = settings.to_dict() | {"place": settings.place and str(settings.place)}
    assert shared.count == settings.count
    shown = {**values, "images": [str(path) for path in images or []], "name": command_name(context)}
    Console().data(json.dumps(shown))


def make_app() -> typer.Typer:
    app = typer.Typer(cls=RootGroup, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command("search")(expand(search))
    app.command("other")(expand(search))
    return app


APP = make_app()


def run(*arguments: str | Path, code: int = 0, env: dict[str, str] | None = None) -> dict[str, Any]:
    result = CliRunner().invoke(APP, ["search", *map(str, arguments)], env=env)
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    values: dict[str, Any] = json.loads(result.stdout)
    return values


def refusal(*arguments: str | Path) -> str:
    """Return the line about what is wrong; a line with a hint may follow, nothing else."""
    result = CliRunner().invoke(APP, ["search", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    first, *rest = result.stderr.splitlines()
    assert rest in ([], ["Try 'root search --help'."])
    assert first.startswith("pixelsem: ")
    return first.removeprefix("pixelsem: ")


# Options


def test_without_options_the_defaults_count() -> None:
    assert run() == Search().to_dict() | {"images": [], "name": "search"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--count", "5"], {"count": 5}),
        (["--rate", "1"], {"rate": 1.0}),
        (["--rate=1e-3"], {"rate": 0.001}),
        (["--rate", "4/12"], {"rate": 4 / 12}),
        (["--span", "1/4, 5/3"], {"span": [0.25, 5 / 3]}),
        (["--no-careful", "--loud", "-b"], {"careful": False, "loud": True, "brief": True}),
        (["--careful"], {"careful": True}),
        (["--way", "right"], {"way": "right"}),
        (["--way", "RIGHT"], {"way": "right"}),
        (["-p", "a b/c"], {"place": "a b/c"}),
        (["--place", "x"], {"place": "x"}),
        (["--span", "0.25,2"], {"span": [0.25, 2.0]}),
        (["--span", "0, 1"], {"span": [0.0, 1.0]}),
        (["--mean", "0.1,0.2,0.30000000000000004"], {"mean": [0.1, 0.2, 0.30000000000000004]}),
        (["--sizes", "4"], {"sizes": [4]}),
        (["--sizes", "4,5,6"], {"sizes": [4, 5, 6]}),
        (["--most", "2"], {"most": 2}),
        (["--label", "FILE.csv"], {"label": "FILE.csv"}),
        (["x", "--count", "2", "y z"], {"count": 2, "images": ["x", "y z"]}),
        (["--", "-x"], {"images": ["-x"]}),
    ],
)
def test_every_kind_of_option(arguments: list[str], expected: dict[str, Any]) -> None:
    assert run(*arguments) == Search().to_dict() | {"images": [], "name": "search"} | expected


def test_the_environment_stands_for_an_option() -> None:
    assert run(env={"PIXELSEM_TEST_TOKEN": "abc"})["token"] == "abc"
    assert run("--token", "given", env={"PIXELSEM_TEST_TOKEN": "abc"})["token"] == "given"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--count", "0"], ["'--count'", "greater than or equal to 1"]),
        (["--count", "11"], ["'--count'", "less than or equal to 10"]),
        (["--count", "x"], ["'--count'", "valid integer"]),
        (["--count", "2.5"], ["'--count'", "valid integer"]),
        (["--rate", "nan"], ["rate"]),
        (["--rate", "-1"], ["'--rate': -1.0 is not between 0 and 1"]),
        (["--rate", "3/2"], ["'--rate': 1.5 is not between 0 and 1"]),
        (["--rate", "1/0"], ["'--rate': '1/0' is no number, nor a fraction like 4/12"]),
        (["--rate", "1/2/3"], ["'--rate': '1/2/3' is no number, nor a fraction like 4/12"]),
        (["--span", "0,1/0"], ["--span: '0,1/0' is not a list like 1,2"]),
        (["--way", "up"], ["'--way'", "'up' is not one of 'left', 'right'"]),
        (["--most", "0"], ["'--most'", "greater than or equal to 1"]),
        (["--span", "1"], ["--span: 2 values expected, 1 given"]),
        (["--span", "1,a"], ["--span: '1,a' is not a list like 1,2"]),
        (["--span", "1,3"], ["--span: 3.0 is not between 0 and 2"]),
        (["--span", "1,nan"], ["--span: a number expected, not nan"]),
        (["--span", "1,0.5"], ["--span: the wrong way round"]),
        (["--mean", "1,2"], ["--mean: 3 values expected, 2 given"]),
        (["--sizes", "1,"], ["--sizes: '1,' is not a list like 1,2,3"]),
        (["--count"], ["'--count' requires an argument"]),
        (["--cuont", "3"], ["No such option: --cuont", "--count"]),
        (["--no-loud"], ["No such option: --no-loud"]),
    ],
)
def test_what_is_wrong_is_told_in_one_line(arguments: list[str], parts: list[str]) -> None:
    message = refusal(*arguments)
    assert all(part in message for part in parts), message


def test_help_shows_every_option_with_its_default_and_range() -> None:
    text = " ".join(CliRunner().invoke(APP, ["search", "--help"]).stdout.split())
    for part in (
        "--count <int range> How many. [default: 3; 1<=x<=10]",
        "--careful / --no-careful Whether to look twice. [default: careful]",
        "--loud Whether to shout.",
        "-b", "--way <left|right>", "-p, --place <path>", "--span NUM,NUM From, to. [default: 0.5,1]",
        "--mean NUM,NUM,NUM Three numbers.", "--sizes INT,… Any number of them. [default: 1,2]", "--label WORD",
        "PIXELSEM_TEST_TOKEN", "--config",
    ):  # fmt: skip
        assert part in text


# --config


def config(folder: Path, text: str, name: str = "options.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_config_fills_every_kind_of_option(tmp_path: Path) -> None:
    text = """
count: 5
rate: 1
careful: false
loud: true
brief: true
way: right
place: a/b
span: [0.25, 1]
mean: [0.1, 0.2, 0.30000000000000004]
sizes: 7
most: null
label: 007
token: "no"
images: [x, y z]
"""
    assert run("--config", config(tmp_path, text)) == {
        "count": 5, "rate": 1.0, "careful": False, "loud": True, "brief": True, "way": "right", "place": "a/b",
        "span": [0.25, 1.0], "mean": [0.1, 0.2, 0.30000000000000004], "sizes": [7], "most": None, "label": "7",
        "token": "no", "images": ["x", "y z"], "name": "search",
    }  # fmt: skip


def test_fractions_dashes_and_text_lists_are_taken_too(tmp_path: Path) -> None:
    assert run("--config", config(tmp_path, "rate: 1/3"))["rate"] == 1 / 3
    assert run("--config", config(tmp_path, "span: 0.5,0.75\nimages: one"))["span"] == [0.5, 0.75]
    assert run("--config", config(tmp_path, ""))["count"] == 3


@pytest.mark.parametrize("flipped", [False, True])
def test_the_command_line_beats_the_config_beats_the_preset_beats_the_default(tmp_path: Path, flipped: bool) -> None:
    file = config(tmp_path, "count: 5\nway: right")
    given = [["--config", str(file)], ["--preset", "paper"]]
    arguments = [word for pair in (given[::-1] if flipped else given) for word in pair]
    values = run(*arguments)
    assert (values["count"], values["way"], values["span"]) == (5, "right", [0.25, 0.3333333333333333])
    assert values["label"] == "auto"
    values = run(*arguments, "--count", "9", "--rate", "0.75")
    assert (values["count"], values["rate"], values["span"]) == (9, 0.75, [0.25, 0.3333333333333333])
    values = run("--preset", "paper")
    assert (values["count"], values["rate"]) == (7, 0.125)


def test_a_preset_may_come_from_the_config(tmp_path: Path) -> None:
    values = run("--config", config(tmp_path, "preset: paper\ncount: 5"))
    assert (values["count"], values["rate"]) == (5, 0.125)


def test_paths_in_a_config_are_as_on_the_command_line(tmp_path: Path) -> None:
    values = run("--config", config(tmp_path / "deep", "place: a.csv\nimages: [imgs]"))
    assert (values["place"], values["images"]) == ("a.csv", ["imgs"])


def write_stage(path: Path, command: str = "search", **options: Any) -> Path:
    stage = Stage.create(path, StageInfo("attack", command, "identity", options, {}))
    return stage.path / "stage.yaml"


def test_a_stage_file_repeats_its_run_with_paths_from_where_it_lies(tmp_path: Path) -> None:
    file = write_stage(
        tmp_path / "run" / "s", count=4, span=[0.5, 0.6], careful=False, place="../../labels.csv",
        images=["../imgs", "/abs"], most=None,
    )  # fmt: skip
    values = run("--config", file)
    assert (values["count"], values["span"], values["careful"], values["most"]) == (4, [0.5, 0.6], False, None)
    assert Path(values["place"]).resolve() == (tmp_path / "labels.csv").resolve()
    assert [Path(path).resolve() for path in values["images"]] == [(tmp_path / "run" / "imgs").resolve(), Path("/abs")]
    assert run("--config", file, "--place", "mine", "x")["place"] == "mine"
    assert run("--config", file, "x")["images"] == ["x"]


def test_a_stage_file_of_another_command_is_refused(tmp_path: Path) -> None:
    file = write_stage(tmp_path / "s", command="attack de")
    assert refusal("--config", file) == f"{file}: is of `attack de`, not of `search`"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cuont: 3", "unknown key 'cuont'; `search` has images, preset, count, rate"),
        ("config: x", "unknown key 'config'"),
        ("context: x", "unknown key 'context'"),
        ("help: x", "unknown key 'help'"),
        ("3: x", "unknown key 3"),
        ("- count", "expected a mapping of option names to values"),
        ("count", "expected a mapping of option names to values"),
        ("count: true", "count: a value that is not true or false (quote a word like no) expected, True given"),
        ("label: no", "label: a value that is not true or false (quote a word like no) expected, False given"),
        ("loud: 1", "loud: true or false expected, 1 given"),
        ("loud: 'yes'", "loud: true or false expected, 'yes' given"),
        ("count: {a: 1}", "count: one plain value expected, {'a': 1} given"),
        ("span: [[1, 2]]", "span: one plain value expected, [1, 2] given"),
        ("count: 0", "'--count': Input should be greater than or equal to 1"),
        ("count: many", "'--count': Input should be a valid integer"),
        ("count: [1, 2]", "'--count': Input should be a valid integer"),
        ("way: up", "'--way': 'up' is not one of 'left', 'right'"),
        ("count: 1\ncount: 2", "'count' is given twice"),
        ("a: &x [1]\nb: [*x, *x]", "aliases (*name) are not taken"),
        ("place: !!python/object/apply:os.getcwd []", "could not determine a constructor for the tag"),
        ("count: [", "not valid YAML"),
        ("kind: a\nidentity: b\ncommand: search\noptions: 3", "`options` is not a mapping"),
    ],
)
def test_a_config_that_does_not_fit_is_one_line_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    file = config(tmp_path, text)
    line = refusal("--config", file)
    assert line.startswith(str(file))
    assert message in line


def test_one_option_in_two_spellings_is_refused(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Long(Settings):
        two_words: int = option(1, "Number.")

    app = typer.Typer(cls=RootGroup, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command("a")(expand(_command_with(Long)))
    app.command("b")(lambda: None)
    file = config(tmp_path, "two-words: 1\ntwo_words: 2")
    result = CliRunner().invoke(app, ["a", "--config", str(file)])
    assert (result.exit_code, result.stderr) == (2, f"pixelsem: {file}: 'two_words' is given twice\n")
    result = CliRunner().invoke(app, ["a", "--config", str(config(tmp_path, "two-words: 5"))])
    assert (result.exit_code, result.stdout) == (0, "5\n")


def _command_with(kind: type[Settings]) -> Any:
    def command(*, settings: Settings) -> None:
        Console().data(" ".join(map(str, settings.to_dict().values())))

    command.__annotations__["settings"] = kind
    return command


def test_a_config_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    assert (
        refusal("--config", tmp_path / "none.yaml")
        == f"{tmp_path}/none.yaml: cannot be read: No such file or directory"
    )


def test_the_shared_options_have_good_defaults() -> None:
    assert OutputOptions().run == Path("pixelsem-run")
    assert SelectionOptions() == SelectionOptions(limit=None, sample=None, seed=0)
    with pytest.raises(PixelsemError, match="--limit: 0 is not at least 1"):
        SelectionOptions(limit=0)
