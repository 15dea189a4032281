"""The figures of the documentation: pages and files agree, and the scripts that make them work."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

from opu.calibration import ROUTINES
from opu.calibration.report.figures import FIGURES

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "figures"
COMPARISON = FOLDER / "calibration/retrieval.svg"
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
LARGEST_BYTES = 150_000


def named_images():
    """Return page, alternative text and file of every image in the pages."""
    for page in sorted(DOCS.rglob("*.md")):
        for text, target in IMAGE.findall(page.read_text(encoding="utf-8")):
            yield page, text, (page.parent / target).resolve()


def loaded(name):
    specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return loaded("make")


@pytest.fixture(scope="module")
def calibration_script():
    return loaded("make_calibration")


def test_every_image_of_a_page_exists_and_has_a_text():
    images = list(named_images())
    assert len(images) >= 7
    for page, text, file in images:
        assert file.is_file(), f"{page} names {file}"
        assert len(text) > 20, f"{file} has no text for those who do not see it"


def test_every_picture_is_made_by_a_script_named_by_a_page_and_small(script, calibration_script):
    pictures = {file for file in FOLDER.rglob("*.*") if file.suffix in {".svg", ".png"}}
    results = {calibration_script.FOLDER / f"{name}.svg" for name in calibration_script.RESULTS}
    assert pictures == {FOLDER / name for name in script.FIGURES} | results | {COMPARISON}
    assert pictures == {file for _, _, file in named_images()}
    for file in pictures:
        assert 5000 < file.stat().st_size < LARGEST_BYTES


def test_pages_say_how_the_figures_are_made():
    page = (DOCS / "calibration/transmission_matrix.md").read_text(encoding="utf-8")
    seeds = json.loads((DOCS / "results/retrieval.json").read_text(encoding="utf-8"))["seeds"]
    command = f"python -m benchmarks.retrieval --seeds {len(seeds)} --first-seed {seeds[0]}"
    assert f"`{command} --json`" in page
    assert f"`{command} --figure docs/figures/calibration/retrieval.svg`" in page
    assert "python docs/figures/make.py" in (DOCS / "physics.md").read_text(encoding="utf-8")
    assert "python docs/figures/make_calibration.py`" in (DOCS / "calibration/index.md").read_text(encoding="utf-8")


def test_every_routine_has_a_page_and_a_figure(calibration_script):
    pages = {page.stem for page in (DOCS / "calibration").glob("*.md")} - {"index", "measured"}
    assert set(ROUTINES) <= pages
    assert set(calibration_script.RESULTS) == pages | {"medium_watch"} == set(FIGURES)
    for name in pages:
        page = (DOCS / "calibration" / f"{name}.md").read_text(encoding="utf-8")
        assert f"(../figures/calibration/{name}.svg)" in page
        assert f"make_calibration.py {name}`" in page


@pytest.mark.parametrize("name", ["memory-effect.svg", "hologram.png"])
def test_the_script_draws(script, name, tmp_path):
    script.make(name, tmp_path)
    assert (tmp_path / name).stat().st_size > 5000


@pytest.mark.parametrize("name", ["latency", "tracking"])
def test_the_script_draws_results_of_calibration(calibration_script, name, tmp_path):
    calibration_script.make(name, tmp_path)
    assert (tmp_path / f"{name}.svg").stat().st_size > 5000


@pytest.mark.parametrize(("r", "contrast"), [(0.05, 0.979), (0.79, 0.710), (3.1, 0.439), (12.6, 0.245)])
def test_the_line_of_the_contrast_is_that_of_a_circular_pupil(script, r, contrast):
    """Beside independent simulations; `tests/sim/test_grain.py` has the same table."""
    assert script.pixel_contrast(r) == pytest.approx(contrast, rel=0.01)


def test_the_refused_chain_looks_gaussian_and_is_unitary(script):
    chain = script.transform_chain(256, 128)
    square = np.abs(chain) ** 2
    assert np.mean(square**2) / np.mean(square) ** 2 == pytest.approx(2, abs=0.1)
    np.testing.assert_allclose(np.linalg.svd(chain, compute_uv=False), 16.0**3)
    assert script.singular_value_distance(chain) > 0.5
