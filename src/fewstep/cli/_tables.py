"""Tables on the terminal."""

from rich.console import Console
from rich.table import Table


def terminal() -> Console:
    """The terminal, or a wide page where the output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=150)


def print_tables(tables: list[tuple[str, list[str], list[list[str]]]], console: Console) -> None:
    """Print tables of `(title, header, rows)`."""
    for title, header, rows in tables:
        table = Table(title=title, title_justify="left")
        for column in header:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
