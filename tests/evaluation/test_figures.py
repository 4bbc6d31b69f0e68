"""Tables of figures: how values are shown."""

import pytest

from evaluation.figures import Table

ROWS = [["one view", 0.276, None], ["two views", 0.3125, (-0.004, 0.013)]]
FORMATS = ["{}", "{:.1%}", "{:+.1%} to {:+.1%}"]


def test_values_are_shown_by_the_format_of_their_column() -> None:
    table = Table("Views", "In percent.", ["", "Recall@1", "Difference"], ROWS, FORMATS)
    assert table.as_text() == [["one view", "27.6%", ""], ["two views", "31.2%", "-0.4% to +1.3%"]]
    assert str(table).splitlines() == [
        "Views",
        "             Recall@1      Difference",
        "  one view      27.6%",
        "  two views     31.2%  -0.4% to +1.3%",
        "  In percent.",
    ]
    with pytest.raises(ValueError, match="zip"):
        Table("Ragged", "", ["a", "b"], [["1"]], ["{}"] * 2).as_text()
