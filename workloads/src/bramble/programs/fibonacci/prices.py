"""Daily prices: from packages that bring them, from a file of the user, or made up. Whatever is wrong is said with its row."""

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
"""Days: a year of trading."""
MAX_GAP_DAYS = 14
"""Days without a price: longer than any holiday; the New York exchange was closed for six in September 2001."""


class Source(NamedTuple):
    """A series in an installed package: the file there, the column, and what another column must say."""

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
"""The licences of these packages hold for the collection; whose the prices are is another matter, so none is copied here."""


class Series(NamedTuple):
    """Closing prices of days in order."""

    name: str
    days: tuple[date, ...]
    prices: np.ndarray

    @property
    def growth(self) -> np.ndarray:
        """The factors from day to day."""
        growth: np.ndarray = self.prices[1:] / self.prices[:-1]
        return growth


def load_series(name: str) -> Series:
    """A series by its name in SOURCES, or by the path of a CSV file as Yahoo and Stooq make them.

    Raises UsageError, naming file and row, when there are none, or some are missing, impossible or out of order.
    """
    source = SOURCES.get(name)
    if source is None:
        if not os.path.exists(name):
            here = ", ".join(known for known, each in SOURCES.items() if find_spec(each.package))
            raise UsageError(f"{name} is neither a file nor one of the series that are here: {here}")
        return read_prices(Path(name), name, None, None)
    spec = find_spec(source.package)  # found, not imported: some import pandas, which nodes do not have
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"{name} is in the Python package {source.package}, which is not installed here")
    return read_prices(Path(spec.submodule_search_locations[0], source.file), name, source.column, source.only)


def read_prices(path: Path, name: str, column: str | None, only: tuple[str, str] | None) -> Series:
    """The prices of a CSV file, plain or .gz; the adjusted close if there is one, since a split is not a swing."""
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
            found = list(_read_rows(path, table, wanted, only))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if len(found) < MIN_DAYS:
        raise UsageError(f"{path} has {len(found)} prices; fewer than {MIN_DAYS} have too few swings to say anything")
    days, prices = zip(*found, strict=True)
    return Series(name, days, np.array(prices))


def _read_rows(path: Path, table: Iterable[dict[str, str]], column: str, only: tuple[str, str] | None) -> Iterator[tuple[date, float]]:
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
                f"{where}: {column} of {day} is {row[column]!r}, must be a price above 0; fill it in or remove the row"
            ) from None
        if last and day <= last:
            raise UsageError(f"{where}: {day} comes after {last}; the days must be in order, the oldest first, each once")
        if last and (day - last).days > MAX_GAP_DAYS:
            raise UsageError(f"{where}: there is no price between {last} and {day}; use the part before or after the gap")
        last = day
        yield day, price


def _parse_day(where: str, text: str) -> date:
    for form in ("%Y-%m-%d", "%m/%d/%Y"):
        try:
            return datetime.strptime(text.strip(), form).date()
        except ValueError:
            continue
    raise UsageError(f"{where}: {text!r} is not a day such as 2020-02-29")


def random_walk(days: int, spread: float, seed: int) -> np.ndarray:
    """Prices that know nothing of levels: a random walk of logarithms with the standard deviation `spread` per day."""
    return np.exp(np.cumsum(np.random.default_rng([seed, 1]).normal(0, spread, days)))


def planted_prices(days: int, share: float, seed: int) -> np.ndarray:
    """Prices whose swings are a level times the one before with probability `share`, else a ratio drawn from between.

    A test that does not find them would find nothing.
    """
    draw = np.random.default_rng([seed, 2])
    prices, up, swing = [100.0], True, 20.0
    while len(prices) < days:
        least, most = 8.0, min(45.0, 180 - prices[-1] if up else prices[-1] - 60)  # so that prices stay between 60 and 180
        levels = [level for level in LEVELS if least <= swing * level <= most]
        swing = swing * draw.choice(levels) if levels and draw.random() < share else draw.uniform(least, most)
        end = prices[-1] + (swing if up else -swing)
        prices += np.linspace(prices[-1], end, int(draw.integers(8, 16)))[1:].tolist()
        up = not up
    return np.array(prices[:days])
