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
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for row in rows:
    cells = []
    for index, cell in enumerate(row):
      width = widths[index]
      if index in right:
        cells.append(cell.rjust(width))
      else:
        cells.append(cell.ljust(width))
    line = GAP.join(cells)
    lines.append(line.rstrip())
  return "\n".join(lines)
