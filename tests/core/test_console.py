import json
import unicodedata

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from opu.console import plain, reporting, split_json_option
from opu.errors import ConfigError, RefusedError, UnreachableError

# Half of the characters are such as steer terminals and markup, the others any, lone surrogates included. With the
# alphabet of `st.text()` itself a fresh clone would first tabulate all of Unicode, for seconds.
CHARACTERS = st.sampled_from("\x1b\x07\x9b\r\n\u202e\u2028[]\\/=#:b0 ").map(str) | st.integers(0, 0x10FFFF).map(chr)
# Rich takes some backslashes for its own, however they are escaped.
HARMLESS = CHARACTERS.filter(lambda c: unicodedata.category(c)[0] not in "CZ" and c != "\\")


@given(st.text(CHARACTERS, max_size=50))
def test_a_foreign_text_cannot_steer_the_terminal(text):
    shown = plain(text)
    assert shown.isprintable()
    assert Text.from_markup(f"[bold]{shown}[/]").spans[0].style == "bold"
    assert len(Text.from_markup(shown).spans) == 0


@given(st.text(HARMLESS, max_size=50))
def test_a_harmless_text_is_shown_as_it_is(text):
    assert Text.from_markup(f"[bold]{plain(text)}[/]", emoji=False).plain == text


def test_words_between_colons_are_no_pictures(capsys):
    with reporting("weigh", None) as report:
        report.console.print(plain("tcp://[fe80::a:b:1]:5755"))
    assert capsys.readouterr().out.strip() == "tcp://[fe80::a:b:1]:5755"


def test_escape_becomes_visible(capsys):
    Console().print(plain("\x1b[31mred\r\n\x07 [link=file:///x]<script>"), highlight=False)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert out.strip() == r"\x1b[31mred\r\n\x07 [link=file:///x]<script>"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["info"], ["info"]),
        (["info", "--json"], ["info", "--json=-"]),
        (["info", "--json", "out.json"], ["info", "--json=out.json"]),
        (["info", "--json=out.json"], ["info", "--json=out.json"]),
        (["info", "--json", "sim:"], ["info", "--json=-", "sim:"]),
        (["info", "--json", "tcp://x.json"], ["info", "--json=-", "tcp://x.json"]),
        (["info", "sim:", "--json"], ["info", "sim:", "--json=-"]),
        (["info", "--json", "a.json", "b.json"], ["info", "--json=a.json", "b.json"]),
        ([], []),
    ],
)
def test_a_bare_json_option_means_standard_output(arguments, expected):
    assert split_json_option(arguments) == expected


def test_the_object_has_its_schema_and_the_fields(capsys):
    with reporting("weigh", "-") as report:
        report.fields["mass_kg"] = 3.5
        report.console.print("three and a half")
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"schema": "openopu.weigh/1", "ok": True, "error": None, "mass_kg": 3.5}
    assert "three and a half" in captured.err


def test_without_json_people_read_standard_output(capsys):
    with reporting("weigh", None) as report:
        report.console.print("three and a half")
    captured = capsys.readouterr()
    assert captured.out.strip() == "three and a half"
    assert captured.err == ""


def test_the_object_goes_to_a_file_and_people_read_standard_output(tmp_path, capsys):
    path = tmp_path / "out.json"
    with reporting("weigh", str(path)) as report:
        report.console.print("three and a half")
    assert capsys.readouterr().out.strip() == "three and a half"
    assert json.loads(path.read_text())["schema"] == "openopu.weigh/1"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("The mass is -1.", "Use 0 or more."), 2),
        (UnreachableError("Nobody answers.", "Start it."), 3),
        (RefusedError("Not you.", "Ask."), 4),
    ],
)
def test_an_error_is_told_to_people_and_to_scripts(error, status, capsys):
    def weigh():
        with reporting("weigh", "-") as report:
            report.fields["mass_kg"] = 1
            raise error

    with pytest.raises(typer.Exit) as caught:
        weigh()
    assert caught.value.exit_code == status
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["ok"] is False
    assert document["error"] == {"code": error.code, "message": error.problem, "remedy": error.remedy}
    assert document["mass_kg"] == 1
    assert error.problem in captured.err
    assert error.remedy in captured.err


@pytest.mark.parametrize("name", ["none/out.json", ""])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(name, tmp_path, capsys):
    with pytest.raises(typer.Exit) as caught, reporting("weigh", str(tmp_path / name)):
        pytest.fail("the work began")
    assert caught.value.exit_code == 2
    assert str(tmp_path / name) in capsys.readouterr().err.replace("\n", "")


def test_a_file_that_cannot_be_written_any_more_is_an_error_like_others(tmp_path, capsys):
    path = tmp_path / "out.json"
    with pytest.raises(typer.Exit) as caught, reporting("weigh", str(path)):
        path.mkdir()
    assert caught.value.exit_code == 2
    assert "Is a directory" in capsys.readouterr().err


def test_a_missed_limit_is_no_error_and_ends_with_1(capsys):
    with pytest.raises(typer.Exit) as caught, reporting("weigh", "-") as report:
        report.ok = False
    assert caught.value.exit_code == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert document["error"] is None


def test_an_error_of_a_program_is_not_hidden():
    with pytest.raises(ZeroDivisionError), reporting("weigh", None):
        1 / 0  # noqa: B018 - the error is the point
