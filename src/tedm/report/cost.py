"""Table 4 (Rosnati et al. 2023): what predicting one image costs with each method."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tedm.errors import TedmError
from tedm.files import whole, write_text
from tedm.progress import say
from tedm.report import tables

COLUMNS = {
    "method": "Method",
    "passes": "Passes",
    "network_gmac": "Network, GMAC",
    "head_gmac": "Head, GMAC",
    "gmac": "GMAC",
    "seconds": "Seconds",
}


def write_table4(spec: Mapping[str, Any], gmac: Path, seconds: Path, out: Path) -> None:
    """Join the counted multiplications and the measured seconds of each method.

    The counts are the same on every machine and in every run, the seconds are not: they have files of their
    own, and this table is the same to the byte for the same two files.

    Args:
        spec: methods, each with name, source (its baseline or head), backbone (or none) and timesteps.
        gmac: CSV of `costs.measure`, counted.
        seconds: CSV of `costs.measure`, measured.
        out: table4.csv; .md and .tex lie beside it.
    """
    counted, measured = _read(gmac, "gmac"), _read(seconds, "seconds")
    rows = [_row(method, counted, measured) for method in spec["methods"]]
    made = pd.DataFrame(rows)
    with whole(out) as partial:
        made.to_csv(partial, index=False, na_rep="nan", float_format="%.4g", lineterminator="\n")
    first = pd.read_csv(seconds).iloc[0]
    caption = (
        "Cost of predicting one image. GMAC: billions of multiply-accumulates of convolutions, matrix"
        " products and attention, as PyTorch's flop counter counts them; norms, activations, softmax and"
        " whatever is computed outside PyTorch (–) are not counted. Passes: runs of the network, one per"
        " timestep."
        f" Seconds: median, one image at a time, {first['device']}, {first['threads']}"
        f" thread{'' if first['threads'] == 1 else 's'};"
        " reading a stored feature instead of computing it costs no pass."
    )
    head, cells = list(COLUMNS.values()), [_cells(row) for row in rows]
    write_text(out.with_suffix(".md"), _markdown(head, cells, caption))
    write_text(out.with_suffix(".tex"), _latex(head, cells, caption, f"tab:{out.stem}"))
    say(f"Table 4: {out} (.md, .tex)")


def _read(path: Path, quantity: str) -> dict[tuple[str, str], tuple[float, bool]]:
    try:
        rows = pd.read_csv(path)
        return {
            (row["kind"], row["name"]): (float(row[quantity]), bool(row["per_timestep"]))
            for row in rows.to_dict("records")
        }
    except (OSError, ValueError, KeyError) as error:
        raise TedmError(f"{path}: not a file of `tedm cost` ({error}); delete it and run again") from None


def _row(
    method: Mapping[str, Any],
    counted: Mapping[tuple[str, str], tuple[float, bool]],
    measured: Mapping[tuple[str, str], tuple[float, bool]],
) -> dict[str, Any]:
    source, backbone, steps = method["source"], method["backbone"], len(method["timesteps"])
    if backbone is None:
        network, head = _cost(counted, "baseline", source, 1), 0.0
        seconds = _cost(measured, "baseline", source, 1)
    else:
        network, head = (
            _cost(counted, "backbone", backbone, steps),
            _cost(counted, "head", source, steps),
        )
        seconds = _cost(measured, "backbone", backbone, steps) + _cost(measured, "head", source, steps)
        if head == 0:  # it computes outside PyTorch
            head = float("nan")
    return {
        "method": method["name"],
        "passes": max(1, steps),
        "network_gmac": network,
        "head_gmac": head,
        "gmac": float(np.nansum([network, head])),
        "seconds": seconds,
    }


def _cost(
    parts: Mapping[tuple[str, str], tuple[float, bool]], kind: str, name: str, timesteps: int
) -> float:
    if (kind, name) not in parts:
        raise TedmError(f"costs: nothing of the {kind} {name}; run `tedm cost` for this experiment again")
    value, per_timestep = parts[kind, name]
    return value * timesteps if per_timestep else value


def _cells(row: Mapping[str, Any]) -> list[str]:
    numbers = [row[name] for name in ("network_gmac", "head_gmac", "gmac", "seconds")]
    shown = ["–" if np.isnan(n) else f"{n:.3g}" if n < 100 else f"{n:.1f}" for n in numbers]
    return [row["method"], str(row["passes"]), *shown]


def _markdown(head: list[str], cells: list[list[str]], caption: str) -> str:
    rows = [[tables.markdown_escaped(row[0]), *row[1:]] for row in cells]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        " | ".join(
            [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in (head, rule, *rows)
    ]
    return "".join(f"| {line} |\n" for line in lines) + f"\n{tables.markdown_escaped(caption)}\n"


def _latex(head: list[str], cells: list[list[str]], caption: str, label: str) -> str:
    body = [" & ".join(map(tables.latex_escaped, row)) + r" \\" for row in (head, *cells)]
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}[tbp]",
        r"  \centering",
        rf"  \caption{{{tables.latex_escaped(caption)}}}",
        rf"  \label{{{label}}}",
        r"  \vspace{4pt}",
        r"  \footnotesize",
        rf"  \begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        r"    \toprule",
        f"    {body[0]}",
        r"    \midrule",
        *(f"    {line}" for line in body[1:]),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"
