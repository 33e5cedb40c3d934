"""The static page of a run: scorecard, figures, previews."""

import html
from pathlib import Path

from tools.scorecard.card import Metric, shown, verdict
from tools.scorecard.figures import FIGURES
from tools.scorecard.findings import Findings
from tools.scorecard.products import Run

N_PREVIEWS = 12
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { text-align: left; padding-top: 1em; }
td { padding: 2px 10px 2px 0; border-bottom: 1px solid #eee; vertical-align: top; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.ok { color: #00714f; } td.MISSED { color: #b33c00; font-weight: bold; }
figure { margin: 1em 0; } figure img { max-width: 100%; }
.previews { display: grid; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); gap: 10px; }
.previews img { width: 100%; } .previews div { font-size: 11px; color: #555; overflow-wrap: anywhere; }
"""


def _row(metric: Metric) -> str:
    target = f"{metric.sense} {shown(metric.target)}" if metric.sense else ""
    word = verdict(metric)
    return (
        f"<tr><td>{html.escape(metric.name)}</td><td class=number>{shown(metric.value)}</td>"
        f"<td class=number>{html.escape(target)}</td><td class='{word}'>{word}</td>"
        f"<td>{html.escape(metric.note)}</td></tr>"
    )


def _table(cards: dict[str, list[Metric]]) -> str:
    rows = []
    for heading, metrics in cards.items():
        rows.append(f"<tr><th colspan=5>{html.escape(heading)}</th></tr>")
        rows += [_row(metric) for metric in metrics]
    return "<table>" + "\n".join(rows) + "</table>"


def _previews(run: Run, findings: Findings) -> str:
    """Thumbnails of some channels, copied so that the report can be moved."""
    folder = run.path / "report" / "previews"
    folder.mkdir(exist_ok=True)
    step = max(1, len(findings.science) // N_PREVIEWS)
    parts = []
    for science in findings.science[::step][:N_PREVIEWS]:
        source = science.path("preview.jpg")
        if source.is_file():
            (folder / source.name).write_bytes(source.read_bytes())
            label = f"{science.exposure} rcid {science.rcid}"
            parts.append(f"<div><img src='previews/{source.name}' alt='{label}'>{label}</div>")
    return "<div class=previews>" + "\n".join(parts) + "</div>"


def write_page(run: Run, findings: Findings, cards: dict[str, list[Metric]], drawn: list[str]) -> Path:
    """Write ``report/index.html``; returns its path."""
    missed = [m.name for metrics in cards.values() for m in metrics if not m.ok]
    summary = f"{len(missed)} targets missed: {', '.join(missed)}" if missed else "Every target is met."
    figures = "\n".join(
        f"<figure><figcaption><h2>{html.escape(FIGURES[name][0])}</h2></figcaption><img src='{name}' alt=''></figure>"
        for name in drawn
    )
    text = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Scorecard {', '.join(run.nights)}</title>"
        f"<style>{_STYLE}</style><h1>Simulated night {', '.join(run.nights)}: products against the truth</h1>"
        f"<p>{html.escape(summary)}</p>{_table(cards)}{figures}"
        f"<h2>Previews</h2>{_previews(run, findings)}</html>\n"
    )
    path = run.path / "report" / "index.html"
    path.write_text(text)
    return path


def write_report(run: Run, findings: Findings, cards: dict[str, list[Metric]]) -> Path:
    """Draw the figures and write the page into ``report/`` of the run."""
    from tools.scorecard import figures, style

    style.use_style()
    folder = run.path / "report"
    folder.mkdir(exist_ok=True)
    drawn = []
    if findings.science:
        shown = {name: draw for name, (_, draw) in figures.FIGURES.items()}
        if not findings.psf_fits:
            del shown["psf.png"]
        if not findings.discoveries:
            del shown["discovery.png"], shown["difference.png"]
        for name, draw in shown.items():
            draw(run, findings, folder / name)
            drawn.append(name)
        figures.overview(run, findings, folder / "overview.png")
    return write_page(run, findings, cards, drawn)
