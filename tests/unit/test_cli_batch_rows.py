import pytest

from reelmesh_cli.batch_results import COMPLETED, FAILED, ResultsFile, RowResult
from reelmesh_cli.batch_rows import read_rows
from reelmesh_cli.errors import UsageError


@pytest.fixture
def rows_of(tmp_path):
    def read(text, name="prompts.csv"):
        file = tmp_path / name
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_rows(file)

    return read


def test_a_csv_gives_prompts_and_settings(rows_of):
    text = '\ufeffPrompt, steps ,seconds\n"a, b",4,1.5\n,,\n"two\nlines",,\nlast,,2\n'
    rows = rows_of(text)
    assert [(row.line, row.prompt, dict(row.settings)) for row in rows] == [
        (2, "a, b", {"steps": 4, "length_sec": 1.5}),
        (4, "two\nlines", {}),
        (6, "last", {"length_sec": 2.0}),
    ]


def test_a_text_file_has_a_prompt_in_each_line(rows_of):
    rows = rows_of("# comment\n一个红球\n\n  b  \n", "prompts.txt")
    assert [(row.line, row.prompt) for row in rows] == [(2, "一个红球"), (4, "b")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prompt,steps\nx,abc\n", r"line 2, column steps: 'abc' is not a whole number"),
        ("prompt,seconds\nx,soon\n", r"line 2, column seconds: 'soon' is not a number"),
        ("prompt,steps\n,3\n", r"line 2, column prompt: is empty"),
        ("prompt\nx,y\n", r"line 2: 2 cells for 1 columns"),
        ("text\nx\n", r"line 1: there is no column named prompt"),
        ("prompt,stepz\nx,1\n", r"line 1: the column 'stepz' is unknown"),
        ("prompt,seconds,length_sec\nx,1,1\n", r"line 1: columns mean the same"),
        ("prompt,steps,steps\nx,1,1\n", r"line 1: columns mean the same: steps"),
        ('prompt\n"x\n', r"is no CSV"),
        ("prompt\n", r"there is no prompt in it"),
        ("", r"there is no column named prompt"),
        (b"prompt\nx\n\xff\n", r"line 3 is not UTF-8"),
    ],
)
def test_bad_files_are_named_by_line_and_column(rows_of, text, says):
    with pytest.raises(UsageError, match=says):
        rows_of(text)


def test_every_bad_row_is_listed_but_not_without_end(rows_of):
    with pytest.raises(UsageError) as caught:
        rows_of("prompt,steps\n" + "x,?\n" * 50)
    assert caught.value.message.count("line ") == 20
    assert "and 30 more" in caught.value.message


def test_a_row_is_known_by_its_content_and_equal_rows_differ(rows_of):
    first = rows_of("prompt,steps\na,1\nb,2\na,1\n")
    assert len({row.digest for row in first}) == 3
    moved = rows_of("steps,prompt\n2,b\n1,a\n1,a\n")
    assert {row.digest for row in moved} == {row.digest for row in first}
    changed = rows_of("prompt,steps\na,1\nb,3\na,1\n")
    assert len({row.digest for row in changed} & {row.digest for row in first}) == 2


def result(digest, status=COMPLETED, **more):
    return RowResult(line=2, prompt="a", status=status, digest=digest, **more)


def test_results_survive_a_torn_last_line(tmp_path):
    results = ResultsFile(tmp_path)
    results.open(resume=True)
    (tmp_path / "a.mp4").write_bytes(b"video")
    sha256 = "0cc6a5be0ad4ed0a6eb4e4a3a8ac2d8a61eb1b1ad9a3fcf0eb0d2bc7ce17b2ad"
    results.add(result("one", file="a.mp4", sha256=sha256))
    results.add(result("two", FAILED, code="poison", message='says "no",\nreally'))
    with results.path.open("ab") as file:
        file.write(b"9,torn,comple")
    again = ResultsFile(tmp_path)
    again.open(resume=True)
    lines = results.path.read_text().splitlines()
    assert len(lines) == 3
    assert 'says ""no"", really' in lines[2]
    assert not again.finished("one"), "the file's bytes are not those of the results"
    assert not again.finished("two")


def test_a_finished_row_is_one_whose_file_is_there_unchanged(tmp_path):
    import hashlib

    results = ResultsFile(tmp_path)
    results.open(resume=True)
    (tmp_path / "a.mp4").write_bytes(b"video")
    results.add(result("one", file="a.mp4", sha256=hashlib.sha256(b"video").hexdigest()))
    assert results.finished("one")
    (tmp_path / "a.mp4").write_bytes(b"vide0")
    assert not results.finished("one")
    (tmp_path / "a.mp4").unlink()
    assert not results.finished("one")
    assert not results.finished("unknown")


def test_the_end_puts_the_rows_in_order_with_the_last_word_on_each(tmp_path):
    results = ResultsFile(tmp_path)
    results.open(resume=True)
    results.add(result("b", FAILED))
    results.add(result("a"))
    results.add(result("b"))
    results.close(["a", "b"])
    digests = [line.rsplit(",", 1)[1] for line in results.path.read_text().splitlines()[1:]]
    assert digests == ["a", "b"]
    assert FAILED not in results.path.read_text()


def test_beginning_anew_forgets_the_past(tmp_path):
    results = ResultsFile(tmp_path)
    results.open(resume=True)
    results.add(result("a"))
    again = ResultsFile(tmp_path)
    again.open(resume=False)
    assert len(again.path.read_text().splitlines()) == 1
