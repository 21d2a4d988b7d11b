"""The page in a real browser: it is painted, at every width, and nothing is complained of."""

import subprocess

import pytest
from convergate.components.report import render

CONSOLE = "CONSOLE"


def shoot(chromium, html, tmp_path, *options):
    """Paint a page; returns what the browser's console says."""
    (tmp_path / "report.html").write_text(html)
    switches = (
        "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
        " disable-component-update disable-sync hide-scrollbars enable-logging=stderr"
    )
    command = [
        str(chromium),
        *(f"--{switch}" for switch in switches.split()),
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--screenshot={tmp_path / 'shot.png'}",
        *options,
        (tmp_path / "report.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    return [line for line in done.stderr.splitlines() if CONSOLE in line]


@pytest.mark.parametrize(("name", "width"), [("passing", 1200), ("diverged", 500)])
def test_page_is_painted_without_complaint(require_tool, runs, tmp_path, name, width):
    import matplotlib.image as mpimg

    complaints = shoot(require_tool("chromium"), render(getattr(runs, name)()), tmp_path, f"--window-size={width},1400")
    assert complaints == []
    pixels = mpimg.imread(tmp_path / "shot.png")[..., :3]
    assert pixels.shape[:2] == (1400, width)
    background = pixels[2, 2]
    painted = (abs(pixels - background).max(axis=2) > 0.05).mean()
    assert painted > 0.04
    middle = pixels[300:700].reshape(-1, 3)
    assert len({tuple(pixel) for pixel in (middle * 255).astype(int).tolist()}) > 200


def test_complaints_would_be_seen(require_tool, tmp_path):
    assert shoot(require_tool("chromium"), "<script>console.error('seen')</script>", tmp_path)
