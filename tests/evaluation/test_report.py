"""Words and pictures of an evaluation; what the command writes is in test_evaluate."""

from tfrec_attn.evaluation import report


def test_a_table_is_markdown():
    text = report.table([{"method": "a", "x": "1"}, {"method": "b", "x": "22"}])
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]
    assert [cells[0], *cells[2:]] == [["method", "x"], ["a", "1"], ["b", "22"]]
