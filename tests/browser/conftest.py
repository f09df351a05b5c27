import json
import os
import shutil
from pathlib import Path

import pytest

from vitscale.analysis.analyse import analyse
from vitscale.records.samples import GpuSample, Sample
from vitscale.report.write import write_report

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>{{7*7}}"


@pytest.fixture(scope="session")
def browser():
    """Chromium, without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        # CI installs it, and sets this: there a skip would hide that it did not.
        assert "browser" not in os.environ.get("VITSCALE_MUST_RUN", ""), "Chromium was to be here and is not"
        pytest.skip(reason="needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=ARGS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """Page of the golden study."""
    return write_report(tmp_path_factory.mktemp("golden"), analyse(GOLDEN / "study"))


@pytest.fixture(scope="session")
def learnt(make, tmp_path_factory):
    """Page of a study that trains, on sampled GPUs, with a price: every figure that the golden study has not."""
    root = make.write_study(tmp_path_factory.mktemp("learnt"))
    resolved = json.loads((root / "resolved.json").read_text())
    terms = {"train": {"target_accuracy": 0.5}, "hardware": {"price_per_hour": 2.0}}
    (root / "resolved.json").write_text(json.dumps({**resolved, **terms}))
    for micro, size, accum in ((16, 1, 1), (16, 2, 1), (32, 1, 1), (32, 2, 1), (16, 1, 2), (8, 1, 4)):
        batch = micro * size * accum
        spec = make.make_spec(
            size, "strong_fixed_micro", micro_batch=micro, grad_accum=accum, global_batch=batch, solved="global_batch",
            data=make.make_spec().data,
        )  # fmt: skip
        scores = [
            {"step": n, "epoch": n / 4, "images": n * batch, "seconds": n * 0.1, "test_loss": 1 / n,
             "test_accuracy": min(1.0, n * 8 / batch)}
            for n in range(1, 9)
        ]  # fmt: skip
        samples = [
            Sample(time_s=time, window="steady" if time else "setup", node=0,
                   gpus=tuple(GpuSample(rank=rank, energy_j=300.0 * time, power_w=300 + time, temperature_c=50.0)
                              for rank in range(size)))
            for time in range(9)
        ]  # fmt: skip
        make.write_launch(root, spec, 0, 0.1, evaluations=scores, samples=samples)
    return write_report(root, analyse(root))


@pytest.fixture(scope="session")
def hostile(make, tmp_path_factory):
    """Page of a study whose every name is an attack."""
    root = make.write_study(tmp_path_factory.mktemp("hostile"), HOSTILE)
    resolved = json.loads((root / "resolved.json").read_text())
    (root / "resolved.json").write_text(json.dumps({**resolved, "name": HOSTILE}))
    for note in (HOSTILE, "javascript:alert(3)"):
        for size in (1, 2):
            spec = make.make_spec(size, deepspeed={"note": note})
            make.write_launch(root, spec, 0, 0.1 / size, device=HOSTILE)
            make.write_launch(root, spec, 1, status="failed", reason=HOSTILE)
    return write_report(root, analyse(root))


class Seen:
    """A page, and what happened in it."""

    def __init__(self, context):
        self.page = context.new_page()
        self.requests, self.console, self.dialogs, self.errors = [], [], [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", self._dismiss)
        self.page.add_init_script(
            "window.violations = [];"
            "document.addEventListener('securitypolicyviolation', (e) => window.violations.push(e.violatedDirective));"
        )

    def _dismiss(self, dialog):
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def assert_quiet(self, path):
        """Nothing was fetched but the file, nothing refused, nothing complained of."""
        assert self.requests == [path.as_uri()]
        assert (self.console, self.dialogs, self.errors) == ([], [], [])
        assert self.page.evaluate("window.violations") == []


@pytest.fixture
def visit(browser):
    """Open a page and wait until its charts are drawn."""
    contexts = []

    def open_page(path, width=1100, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        seen = Seen(context)
        seen.page.goto(path.as_uri())
        if options.get("java_script_enabled", True):
            seen.page.wait_for_selector("html[data-drawn]", timeout=20_000)
        return seen

    yield open_page
    for context in contexts:
        context.close()
