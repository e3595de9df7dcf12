import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "no such command 'fly' (see fmcae --help)"),
        (["predict"], "missing argument 'PATH' (see fmcae predict --help)"),
        (["encode", "x.png"], "missing option '--out' / '-o' (see fmcae encode --help)"),
        (["predict", "x.png", "--top-k", "abc"], "top_k (=abc) must be an integer"),
        (["predict", "x.png", "--top-k=abc"], "top_k (=abc) must be an integer"),
        (["predict", "--top-k", "1", "--top-k", "1.5", "--", "--top-k=3"], "top_k (=1.5) must be an integer"),
        (["predict", "--threads", "", "x.png"], "threads (=) must be an integer"),
        (["bench", "--seconds", "long"], "seconds (=long) must be a number"),
        (["predict", "x.png", "--wings"], "no such option: --wings"),
        (["predict", "x.png", "--jso"], "no such option: --jso; is it --csv or --json?"),
        (["predict", "-lead.png"], "no such option: -l; if -lead.png is a file, write ./-lead.png"),
    ],
)
def test_a_usage_error_is_one_line_that_names_option_and_value(cli, arguments, message):
    result = cli(*arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "x.png", "--top-k"], "'--top-k' requires an argument"),
        (["predict", "x.png", "--json=yes"], "'--json' does not take a value"),
        (["info", "a.onnx", "b.onnx"], "unexpected extra argument"),
    ],
)
def test_others_keep_the_parsers_words(cli, arguments, words):
    result = cli(*arguments)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("error: ") and words in result.stderr


def test_an_option_that_is_also_a_file_is_named(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "--x.png").touch()
    assert cli("predict", "--x.png").stderr == "error: no such option: --x.png; if --x.png is a file, write ./--x.png\n"
