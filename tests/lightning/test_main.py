import json
import subprocess
import sys

import pytest

from steepest.__main__ import main, table
from steepest._registry import methods, records


def test_json_is_the_records(capsys):
    assert main(["methods", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(records()))


def test_filters_keep_what_they_say(capsys):
    main(["methods", "--json", "--oracle", "gradient", "--kind", "optimizer"])
    rows = json.loads(capsys.readouterr().out)
    assert rows
    assert all(row["oracle"] == "gradient" and row["kind"] == "optimizer" for row in rows)
    main(["methods", "--json", "--oracle", "ranking", "--kind", "kernel"])
    assert json.loads(capsys.readouterr().out) == []


def test_table_names_every_method_and_fits(capsys):
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    assert all(m.name in text for m in methods())
    starts = {line.index(word) for line in lines if (word := "optimizer") in line}
    assert len(starts) == 1


def test_table_of_many_symbols_and_a_long_title_still_fits():
    (row, *_) = records()
    names = [f"Name{i}" for i in range(40)]
    long = {**row, "symbols": [f"steepest.optim.{name}" for name in names], "title": "t" * 300}
    text = table([row, long])
    assert max(map(len, text.splitlines())) <= 100
    assert all(name in text for name in names)
    assert table([]).startswith("METHOD")


@pytest.mark.parametrize("args", [[], ["nothing"], ["methods", "--oracle", "delphi"]])
def test_mistakes_end_in_status_2(args, capsys):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    assert "error" in capsys.readouterr().err


def test_the_command_line_imports_nothing_heavy_before_it_is_needed():
    code = (
        "import sys, steepest.__main__\n"
        "assert not {'torch', 'lightning', 'numba', 'triton'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
