"""Aligns the columns of tables that are printed on a terminal."""

from collections.abc import Collection, Sequence

GAP = "  "


def align(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
  """Returns rows as lines of text whose columns are aligned.

  Columns are two spaces apart, and no line ends with a space.

  Args:
    rows: the cells of each row, as many in every row. The first row may be a
      heading.
    right: indices of the columns that are aligned at their right end, as
      numbers are. All others are aligned at their left end.

  Raises:
    ValueError: the rows differ in length.
  """
  columns = zip(*rows, strict=True)
  widths = [max(len(cell) for cell in column) for column in columns]
  lines = []
  for row in rows:
    cells = []
    for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
      cells.append(cell.rjust(width) if index in right else cell.ljust(width))
    lines.append(GAP.join(cells).rstrip())
  return "\n".join(lines)
