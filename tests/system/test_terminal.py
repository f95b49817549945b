"""What is printed: safe text, tables, bars only on terminals, the log, and the formats."""

import errno
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.program import TerminalProgram
from vtrain.errors import DataError
from vtrain.runs.epochs import describe_epoch
from vtrain.runs.metric_log import EpochMetrics
from vtrain.system.log_file import logged_to
from vtrain.system.terminal import (
    Console,
    find_width,
    format_json,
    format_table,
    print_csv_row,
    print_json,
    print_line,
    print_table,
    print_text,
)
from vtrain.system.text import format_count, format_duration, one_line, printable

METRICS = EpochMetrics(
    phase="finetune",
    epoch=3,
    step=30,
    lr=1.23e-4,
    train_loss=0.51234,
    val_loss=0.61234,
    val_top1=0.875,
    val_macro_f1=0.8612,
    images_per_second=123.4,
    data_wait=0.021,
    seconds=12.34,
)


class FakeTerminal(io.StringIO):
    """A stream that says it is a terminal; its size is not known."""

    def isatty(self) -> bool:
        return True


class BrokenStream(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


# --- text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain [a] [/] ½ 猫 é", "plain [a] [/] ½ 猫 é"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("bell\x07 back\x08 del\x7f", "bell\\x07 back\\x08 del\\x7f"),
        ("c1 \x9b31m", "c1 \\x9b31m"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\udcff.png", "\\udcff.png"),
        ("over\rwritten", "over\\rwritten"),
        ("line\u2028separator", "line\\u2028separator"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
    ],
)
def test_printable(raw: str, shown: str) -> None:
    assert printable(raw) == shown
    assert all(char.isprintable() or char in "\n\t\u200c" for char in printable(raw))


def test_printable_as_one_line() -> None:
    assert printable("a\nerror: b\tc", keep="") == "a\\nerror: b\\tc"
    assert one_line(Path("a\nerror: b")) == printable(one_line("a\nerror: b")) == "a\\nerror: b"


def test_every_character_is_safe() -> None:
    for number in (*range(0x3000), *range(0xD800, 0xE000), 0xE0001, 0x1F600, 0x10FFFF):
        text = printable(chr(number), keep="")
        assert "\x1b" not in text
        assert text.encode("utf-8")
        assert len(text.splitlines()) == 1


def test_lines_and_text_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    print_line("a\nb\x1b")
    print_text("a\nb\x1b")
    captured = capsys.readouterr()
    assert captured.out == "a\\nb\\x1b\na\nb\\x1b\n"
    assert captured.err == ""


def test_stdout_that_knows_ascii_only(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    print_line("Käse 猫")
    assert raw.getvalue() == b"K\\xe4se \\u732b\n"


def test_json_survives_any_text(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"path": "a\x1b\n\udcff\u202e猫", "list": [1, 2.5, None, True], "none": [], "map": {}}
    print_json(value, indent=False)
    print_json(value)
    one, *rest = capsys.readouterr().out.splitlines()
    assert json.loads(one) == json.loads("\n".join(rest)) == value
    assert one.isascii()
    assert one.isprintable()


def test_json_of_a_matrix_is_readable() -> None:
    value = {"matrix": [[1, 2], [3, 4]], "rows": [{"class": "a", "f1": 0.5}], "names": ["a", "b"]}
    text = format_json(value)
    assert json.loads(text) == value
    assert '  "matrix": [\n    [1, 2],\n    [3, 4]\n  ]' in text
    assert '"names": ["a", "b"]' in text
    with pytest.raises(ValueError, match="JSON"):
        format_json({"loss": float("nan")})


def test_csv_rows(capsys: pytest.CaptureFixture[str]) -> None:
    print_csv_row(["=cmd", 'say "hi"', "a,b", 0.5, None])
    assert capsys.readouterr().out == '\'=cmd,"say ""hi""","a,b",0.5,\n'


# --- tables --------------------------------------------------------------------------------------

ROWS = [("ant", "1.5", "small"), ("[/]bee[red]", "10.25", "a longer remark about bees")]


def test_table_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("class", "size", "remark"), ROWS, right=(1,))
    assert capsys.readouterr().out.splitlines() == [
        "class         size  remark",
        "ant            1.5  small",
        "[/]bee[red]  10.25  a longer remark about bees",
    ]


def test_table_is_never_folded_off_a_terminal() -> None:
    (_, row) = format_table(("a", "b"), [("x" * 300, "y" * 3000)]).splitlines()
    assert row == "x" * 300 + "  " + "y" * 3000


def test_table_folds_into_its_width_and_loses_nothing() -> None:
    name = "n" * 90
    lines = format_table(("class", "size"), [(name, "1.5")], right=(1,), width=60).splitlines()
    assert max(map(len, lines)) <= 60
    assert "".join(lines).count("n") == 90
    assert "1.5" in "".join(lines)


def test_last_column_is_cut_or_dropped_where_asked() -> None:
    columns = ("class", "size", "remark")
    whole = format_table(columns, ROWS, right=(1,), crop_last=True, width=80)
    assert "a longer remark about bees" in whole
    cut = format_table(columns, ROWS, right=(1,), crop_last=True, width=40).splitlines()
    assert len(cut) == 3
    assert cut[2].endswith("a longer remark abo…")
    assert max(map(len, cut)) == 40
    dropped = format_table(columns, ROWS, right=(1,), crop_last=True, width=25)
    assert "remark" not in dropped
    assert "10.25" in dropped


def test_wide_characters_keep_columns_in_line() -> None:
    lines = format_table(("class", "n"), [("猫猫", "1"), ("ant", "2")], right=(1,)).splitlines()
    assert lines[1] == "猫猫   1"
    assert lines[2] == "ant    2"


def test_heading_is_bold_only_where_styles_are() -> None:
    styled = format_table(("class",), [("ant",)], styled=True, width=40)
    assert "\x1b[1m" in styled
    assert "\x1b" not in format_table(("class",), [("\x1b[31mant",)], width=40)


def test_table_of_no_rows() -> None:
    assert format_table(("class", "size"), []) == "class  size"
    assert format_table(("class", "size"), [], crop_last=True, width=40) == "class  size"


# --- talk ----------------------------------------------------------------------------------------


def test_talk_goes_to_stderr_alone(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.say("hello [b]")
    console.warn("look\x1b")
    console.error(DataError("wrong", "right"))
    console.table(("a", "b"), [("1", "2")], title="numbers")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "hello [b]", "warning: look\\x1b", "error: wrong", "hint: right", "numbers", "a  b", "1  2",
    ]  # fmt: skip


def test_quiet_says_errors_only(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    console.say("hello")
    console.warn("look")
    console.table(("a",), [("1",)])
    console.say_fitting(describe_epoch(METRICS, 10), " best")
    with console.progress(3, "working") as bar:
        bar.update(3)
    console.error(DataError("wrong"))
    assert capsys.readouterr().err == "error: wrong\n"


def test_styles_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = FakeTerminal()
    console = Console(stream=stream)
    console.say("plain")
    console.warn("look")
    assert stream.getvalue() == "plain\n\x1b[33mwarning: look\x1b[0m\n"
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        monkeypatch.setenv(name, value)
        quiet = FakeTerminal()
        Console(stream=quiet).warn("look")
        assert quiet.getvalue() == "warning: look\n"
        monkeypatch.undo()


def test_width_of_a_terminal_without_a_size() -> None:
    assert find_width(FakeTerminal()) == 80
    assert find_width(io.StringIO()) is None


def test_epoch_line_has_what_fits() -> None:
    stream = FakeTerminal()
    Console(stream=stream).say_fitting(describe_epoch(METRICS, 10), " best")
    (line,) = stream.getvalue().splitlines()
    assert len(line) <= 80
    assert line.endswith(" best")


# --- bars ----------------------------------------------------------------------------------------


def test_bar_on_a_terminal_is_gone_in_the_end() -> None:
    stream = FakeTerminal()
    with Console(stream=stream).progress(40, "working") as bar:
        bar.update(10)
        bar.refresh()
        assert "working:  25%|" in stream.getvalue()
    assert stream.getvalue().rpartition("\r")[2] == ""


def test_no_bar_off_a_terminal() -> None:
    stream = io.StringIO()
    console = Console(stream=stream)
    with console.progress(40, "working") as bar:
        bar.update(40)
        bar.set_postfix_str("loss 1")
    assert stream.getvalue() == ""


def test_talk_while_a_bar_is_open_starts_a_line_of_its_own() -> None:
    stream = FakeTerminal()
    console = Console(stream=stream)
    with console.progress(40, "working") as bar:
        bar.update(10)
        console.say("meanwhile")
        before, _, after = stream.getvalue().partition("meanwhile\n")
        assert before.endswith("\r")
        assert "working:  25%" in after
    console.say("later")
    assert stream.getvalue().endswith("\rlater\n")


def test_bar_whose_length_is_learnt_on_the_way() -> None:
    stream = FakeTerminal()
    with Console(stream=stream).progress(0, "counting") as bar:
        bar.total = 10
        bar.update(5)
        bar.update(5)
    assert "counting" in stream.getvalue()


def test_bars_leave_no_thread_behind() -> None:
    import threading

    before = threading.active_count()
    with Console(stream=FakeTerminal()).progress(40, "working") as bar:
        bar.update(10)
        assert threading.active_count() == before


# --- the log -------------------------------------------------------------------------------------


def test_log_gets_everything_with_the_time(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("earlier\n")
    console = Console(quiet=True, stream=io.StringIO())
    with logged_to(path, console) as reporter:
        reporter.say("two\nlines \udcff \x1b")
        reporter.warn("look")
        reporter.log("for the log")
        reporter.table(("a", "b"), [("1", "\x1b")], title="numbers")
        reporter.say_fitting(describe_epoch(METRICS, 10))
    console.say("after")
    first, *lines = path.read_text(encoding="utf-8").splitlines()
    assert first == "earlier"
    stamp = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
    assert all(stamp.match(line) for line in lines)
    assert [stamp.sub("", line) for line in lines] == [
        "two", "lines \\udcff \\x1b", "warning: look", "for the log", "numbers", "a  b", "1  \\x1b",
        "  ".join(describe_epoch(METRICS, 10)),
    ]  # fmt: skip


def test_full_disk_ends_the_log_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    console = Console(stream=stream)

    def fail(self: Any, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    class FullFile(io.StringIO):
        write = fail

    monkeypatch.setattr(Path, "open", lambda *_, **__: FullFile())
    with logged_to(tmp_path / "log.txt", console) as reporter:
        reporter.say("one")
        reporter.say("two")
    assert stream.getvalue().splitlines() == [
        "one", "warning: the log file gets no more lines: No space left on device", "two",
    ]  # fmt: skip


def test_talk_outlives_its_reader(tmp_path: Path) -> None:
    console = Console(stream=BrokenStream())
    with logged_to(tmp_path / "log.txt", console) as reporter:
        reporter.say("one")
        reporter.warn("two")
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2


def test_signal_handler_may_speak_while_talk_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(io.StringIO):
        def write(self, text: str) -> int:
            raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    monkeypatch.setattr(Path, "open", lambda *_, **__: Interrupted())
    console = Console(stream=Interrupted())
    with logged_to(tmp_path / "log.txt", console) as reporter:
        reporter.say("SIGTERM received")


# --- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (950, "950"),
        (12_345, "12.3k"),
        (25_600_000, "25.6M"),
        (999, "999"),
        (999_999, "1M"),
        (1_000, "1k"),
        (4.09e9, "4.09G"),
        (1.5e13, "15000G"),
    ],
)
def test_format_count(count: float, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (8.34, "8.3 s"),
        (59.94, "59.9 s"),
        (59.99, "1 min 00 s"),
        (245, "4 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7_800, "2 h 10 min"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


EPOCH = (
    "epoch  3/10 finetune  top-1 0.8750  F1 0.8612  val loss 0.6123  train loss 0.5123  "
    "12.3 s  123 img/s  wait 2%  lr 1.23e-04"
)


@pytest.mark.parametrize("width", range(40, 140))
def test_epoch_line_never_exceeds_its_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "  ".join(describe_epoch(METRICS, 10)) == EPOCH
    monkeypatch.setattr("vtrain.system.terminal.find_width", lambda _: width)
    stream = io.StringIO()
    Console(stream=stream).say_fitting(describe_epoch(METRICS, 10), " best")
    line = stream.getvalue().removesuffix("\n")
    assert len(line) <= width
    assert line.startswith("epoch  3/10 finetune")
    assert line.endswith(" best")
    assert EPOCH.startswith(line.removesuffix(" best"))


def test_losses_that_explode_stay_short() -> None:
    huge = EpochMetrics(**{**{n: getattr(METRICS, n) for n in METRICS.__slots__}, "val_loss": 1e30})
    assert "val loss 1.00e+30" in describe_epoch(huge, 10)


def test_terminal_program_sees_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the tests on pseudo-terminals rest on.
    code, text = TerminalProgram(monkeypatch)("nonsense", columns=60)
    assert code == 2
    assert text.startswith("\x1b[1;31merror: ")
