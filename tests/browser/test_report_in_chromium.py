"""The report as a reader has it: a file, opened in a browser, with no network."""

from itertools import pairwise

import pytest

pytestmark = pytest.mark.browser

FIGURES = ["waterfall", "throughput", "speedup", "efficiency", "split", "loss"]
LEARNT = [
    "waterfall", "throughput", "speedup", "efficiency", "split", "accuracy", "test_loss", "efficiency_split", "batch",
    "accumulation", "accuracy_batch", "costs", "sensors", "loss",
]  # fmt: skip
INK = "getComputedStyle(document.querySelector('.chart .role-axis-label text')).fill"
PAPER = "getComputedStyle(document.body).backgroundColor"


def marks(page, name):
    """Marks of an interactive chart that take up room."""
    return page.evaluate(
        "name => [...document.querySelectorAll(`[data-chart=${name}] .role-mark :is(path, line)`)]"
        ".filter(one => { const box = one.getBoundingClientRect(); return box.width + box.height > 1; }).length",
        name,
    )


def overflow(page):
    """Pixels the page is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 400])
def test_charts_are_drawn_by_vega_under_the_policy_and_fit(visit, report, scheme, width):
    seen = visit(report, width, color_scheme=scheme)
    seen.assert_quiet(report)
    assert seen.page.eval_on_selector_all(".chart", "all => all.map(one => one.dataset.chart)") == FIGURES
    for name in FIGURES:
        assert marks(seen.page, name) >= 3, name
        chart = seen.page.locator(f"[data-chart={name}]")
        assert chart.is_visible()
        box, svg = chart.bounding_box(), chart.locator("svg").bounding_box()
        assert 0.9 * box["width"] <= svg["width"] <= box["width"] + 1, name
    assert not seen.page.locator(".still").first.is_visible()
    assert overflow(seen.page) <= 0


@pytest.mark.parametrize("width", [1100, 400])
def test_figures_of_training_and_devices_are_drawn_and_fit(visit, learnt, width):
    seen = visit(learnt, width)
    seen.assert_quiet(learnt)
    assert seen.page.eval_on_selector_all(".chart", "all => all.map(one => one.dataset.chart)") == LEARNT
    for name in LEARNT:
        assert marks(seen.page, name) >= 3, name
        chart = seen.page.locator(f"[data-chart={name}]")
        box, svg = chart.bounding_box(), chart.locator("svg").bounding_box()
        assert 0.85 * box["width"] <= svg["width"] <= box["width"] + 1, name
    assert overflow(seen.page) <= 0


def test_charts_take_the_colours_of_the_page(visit, report):
    found = {}
    for scheme in ("light", "dark"):
        page = visit(report, color_scheme=scheme).page
        found[scheme] = page.evaluate(f"[{INK}, {PAPER}]")
    assert found["light"] == ["rgb(28, 33, 38)", "rgb(255, 255, 255)"]
    assert found["dark"] == ["rgb(228, 232, 236)", "rgb(21, 24, 28)"]


def test_charts_follow_the_window(visit, report):
    seen = visit(report)
    seen.page.set_viewport_size({"width": 500, "height": 900})
    # Polled from here: the policy refuses what `wait_for_function` would evaluate in the page.
    widest = "Math.max(...[...document.querySelectorAll('.chart svg')].map(one => one.getBoundingClientRect().width))"
    for _ in range(100):
        seen.page.wait_for_timeout(100)
        if seen.page.evaluate(widest) <= 470:
            break
    assert seen.page.evaluate(widest) <= 470
    assert seen.page.locator(".chart svg").count() == len(FIGURES)
    assert overflow(seen.page) <= 0
    seen.assert_quiet(report)


def test_a_point_tells_its_run(visit, report):
    seen = visit(report)
    seen.page.locator("[data-chart=throughput] .mark-symbol.role-mark path").first.hover(force=True)
    tooltip = seen.page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for(timeout=5_000)
    assert "images/s [" in tooltip.inner_text()
    seen.assert_quiet(report)


def test_hostile_names_are_text_and_nothing_else(visit, hostile):
    seen = visit(hostile)
    assert (
        seen.page.locator("h1").inner_text() == "<img src=x onerror=alert(1)></script><script>alert(2)</script>{{7*7}}"
    )
    for point in seen.page.locator("[data-chart=throughput] .mark-symbol.role-mark path").all()[:4]:
        point.hover(force=True)
        tooltip = seen.page.locator("#vg-tooltip-element.visible")
        tooltip.wait_for(timeout=5_000)
        assert tooltip.locator("img, script, a").count() == 0
    assert seen.page.locator("img, a, iframe, object").count() == 0
    seen.assert_quiet(hostile)
    assert overflow(visit(hostile, 400).page) <= 0


def test_without_scripts_the_drawings_are_there(visit, report):
    page = visit(report, java_script_enabled=False).page
    assert page.locator(".still svg").count() == len(FIGURES)
    assert all(one.is_visible() for one in page.locator(".still svg").all())
    assert not page.locator(".chart").first.is_visible()


def test_paper_gets_the_drawings_in_black_and_every_table(visit, report):
    page = visit(report, color_scheme="dark").page
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert all(one.is_visible() for one in page.locator(".still svg").all())
    assert not any(one.is_visible() for one in page.locator(".chart, summary").all())
    assert page.evaluate(PAPER) == "rgb(255, 255, 255)"
    ink = "getComputedStyle(document.querySelector('.still .role-axis-label text')).fill"
    assert page.evaluate(ink) == "rgb(28, 33, 38)"
    assert page.locator("caption", has_text="Launches: each is one fresh process start").is_visible()
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() > 0


def test_headings_are_in_order_and_everything_drawn_is_described(visit, report):
    page = visit(report).page
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(one => +one.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.evaluate("[...document.querySelectorAll('[role=img]')].every(one => one.ariaLabel.length > 20)")
    assert page.evaluate("[...document.querySelectorAll('main table')].every(one => one.caption && one.tHead)")
