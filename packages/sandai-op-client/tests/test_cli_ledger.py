"""What a batch writes down, and what is refused when it is read again."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandai.op.client.cli import _ledger
from sandai.op.client.cli._journal import Files, without_ledger
from sandai.op.client.cli._ledger import Account, Header, LedgerError, Sent
from sandai.op.client.cli._source import Survey, parse, wanted_lines

HEADER = Header("clipper", "v1", 10, "abc")
texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(texts, texts, st.integers(0), texts)
def test_header(operator: str, version: str, size: int, sha256: str) -> None:
    """A header is read as it was written, and in one line."""
    header = Header(operator, version, size, sha256)
    assert header.line().count(b"\n") == 1
    assert Header.parse(header.line()) == header


@given(st.integers(1), st.integers(1, 99), texts, st.floats(0, 1e12))
def test_sent(line: int, attempt: int, task_id: str, time: float) -> None:
    """So is a task, and what was forgotten."""
    sent = Sent(line, attempt, task_id, time)
    text = sent.text() + _ledger.forgot_line(line)
    assert text.count(b"\n") == 2
    assert list(_ledger.records(io.BytesIO(text))) == [sent, line]
    assert _ledger.last_forgotten([sent, 3, line]) == line


@given(
    st.integers(1, 5),
    st.integers(1, 9),
    texts | st.none(),
    st.booleans(),
    st.dictionaries(texts, st.recursive(st.none() | texts, st.lists)),
)
def test_result(line: int, attempt: int, task_id: str | None, success: bool, rest: object) -> None:
    """A result is counted without being parsed, whatever is in it."""
    text = _ledger.result_line(line, attempt, task_id, success, {"results": rest})
    assert json.loads(text)["results"] == rest
    account = Account()
    account.read_output([text], 0)
    assert account.attempts(line) == attempt
    assert account.has_failed(line) is not success
    assert list(account.unforgotten) == ([] if task_id is None else [task_id])
    assert account.replaces(text)


@pytest.mark.parametrize(
    "line",
    [b"", b"null", b"3", b"[]", b"{}", b'{"ledger": 2}', b'{"ledger": 1}', b"\xff", b"{"],
)
def test_no_header(line: bytes) -> None:
    """Another file's first line is refused."""
    with pytest.raises(LedgerError, match="first line"):
        Header.parse(line)


@pytest.mark.parametrize(
    "line",
    [b"x\n", b"[]\n", b'["sent", 0, 1, "a", 1]\n', b'["sent", 1, 1, 2, 1]\n', b'["forgot"]\n'],
)
def test_damaged_ledger(line: bytes) -> None:
    """A damaged line is told with its number."""
    with pytest.raises(LedgerError, match="line 3 "):
        list(_ledger.records([Sent(1, 1, "a", 1.0).text(), line]))


@pytest.mark.parametrize("line", [b"x\n", b'{"line": 1}\n', b"\0\0\n"])
def test_damaged_output(line: bytes) -> None:
    """So is a line of the output that no batch wrote."""
    with pytest.raises(LedgerError, match="line 1 of the output"):
        Account().read_output([line], 0)


def test_many_lines_are_three_bytes_each() -> None:
    """What is known of a line is small, whatever its result."""
    account = Account()
    account.record(1_000_000, 1, True)
    assert len(account._recorded) * account._recorded.itemsize + len(account._failed) == 3_000_000
    assert (account.done, account.failures, account.attempts(999_999)) == (1, 0, 0)


def files(folder: Path) -> Files:
    """Name a batch's files."""
    return Files(folder / "out", folder / "out.ledger")


def test_files_of_others(tmp_path: Path) -> None:
    """What is there is not overwritten unasked."""
    (tmp_path / "out").write_text("mine\n")
    with pytest.raises(LedgerError, match="--force"):
        files(tmp_path).begin(HEADER, force=False)
    with pytest.raises(LedgerError, match="no ledger"):
        files(tmp_path).resume(HEADER)
    with pytest.raises(LedgerError, match="--force"):
        without_ledger(tmp_path / "out", force=False)
    assert (tmp_path / "out").read_text() == "mine\n"
    files(tmp_path).begin(HEADER, force=True).close()
    assert (tmp_path / "out").read_text() == ""


@pytest.mark.parametrize("text", ["no newline", "a line\nand no newline", "\n"])
def test_no_ledger_at_all(tmp_path: Path, text: str) -> None:
    """A file that --ledger names by mistake stays as it is."""
    wanted = files(tmp_path)
    wanted.ledger.write_text(text)
    with pytest.raises(LedgerError, match="first line"):
        wanted.resume(HEADER)
    assert wanted.ledger.read_text() == text


def test_no_output_of_a_batch(tmp_path: Path) -> None:
    """A file that --output names by mistake stays as it is."""
    wanted = files(tmp_path)
    wanted.begin(HEADER, force=False).close()
    wanted.output.write_text("a line\nand no newline")
    with pytest.raises(LedgerError, match="line 1 of the output"):
        wanted.resume(HEADER)
    assert wanted.output.read_text() == "a line\nand no newline"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Header("cutter", "v1", 10, "abc"), "clipper v1, not for cutter v1"),
        (Header("clipper", "v2", 10, "abc"), "not for clipper v2"),
        (Header("clipper", "v1", 11, "abc"), "10 bytes then, 11 now"),
        (Header("clipper", "v1", 10, "abd"), "the input is not the one"),
    ],
)
def test_another_batch(tmp_path: Path, other: Header, said: str) -> None:
    """Another operator or input than the ledger's is refused."""
    files(tmp_path).begin(HEADER, force=False).close()
    with pytest.raises(LedgerError, match=said):
        files(tmp_path).resume(other)
    files(tmp_path).resume(HEADER).close()


def test_two_at_a_time(tmp_path: Path) -> None:
    """The files of a batch that is running are left alone."""
    journal = files(tmp_path).begin(HEADER, force=False)
    journal.record(1, 1, True, _ledger.result_line(1, 1, "a", True, {}))
    for again in (files(tmp_path).resume, lambda h: files(tmp_path).begin(h, force=True)):
        with pytest.raises(LedgerError, match="in use"):
            again(HEADER)
    assert files(tmp_path).output.stat().st_size
    journal.close()
    files(tmp_path).resume(HEADER).close()


def test_survey(tmp_path: Path) -> None:
    """Lines are counted, with and without a last line end, but for blank ones."""
    path = tmp_path / "in"
    for content, lines in ((b"", 0), (b"a", 1), (b"a\n", 1), (b"a\n\n \r\nb", 2)):
        path.write_bytes(content)
        survey = Survey.of(path)
        assert (survey.lines, survey.size) == (lines, len(content))


def test_lines() -> None:
    """Blank lines are skipped, and numbers are those of an editor."""
    assert list(wanted_lines([b"a\n", b" \n", b"\n", b"b"])) == [(1, b"a\n"), (4, b"b")]


def test_a_line() -> None:
    """Each part may be missing, and an own id is carried."""
    wanted = parse(7, b'{"artifacts": [{"uri": "a"}], "options": {"n": 1}, "id": [1]}')
    assert (wanted.line, wanted.artifacts, wanted.options) == (7, [{"uri": "a"}], {"n": 1})
    assert wanted.key == [1]
    assert (parse(1, b"{}").artifacts, parse(1, b"{}").options) == ([], {})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "an object was expected"),
        (b'{"options": {"n": NaN}}', "not JSON: NaN"),
        (b'{"option": {}}', "'option': use artifacts, options, id"),
    ],
)
def test_a_bad_line(line: bytes, said: str) -> None:
    """It is told by its number, and what would be right."""
    error = parse(7, line).error
    assert error is not None
    assert error.path == "line 7"
    assert said in error.reason
