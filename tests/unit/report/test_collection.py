"""One page over several studies: what each says, what is missing, and what cannot be read."""

import os
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from vitscale.errors import ResultsError
from vitscale.report import collection
from vitscale.workflow import write_collection

TWINS = ("fig06_cpu", "fig08_09_cpu")


class Page(HTMLParser):
    """Headings, links, ids and the elements that could act."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.links, self.ids, self.acting = [], [], [], []
        self._in_heading = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        told = dict(attributes)
        self._in_heading = tag == "h2"
        if tag == "a":
            self.links.append(told["href"])
        if "id" in told:
            self.ids.append(told["id"])
        if tag in ("script", "img", "iframe") or any(name.startswith("on") for name in told):
            self.acting.append(tag)

    def handle_data(self, data):
        if self._in_heading:
            self.headings.append(data)
            self._in_heading = False


def study(make, folder, name, question="Does it scale?"):
    root = make.write_study(folder, question)
    (root / "resolved.json").write_text((root / "resolved.json").read_text().replace('"golden"', f'"{name}"'))
    for size in (1, 2):
        for launch in range(3):
            make.write_launch(root, make.make_spec(size), launch, (0.1 + 0.001 * launch) / size)
    return root


@pytest.fixture(scope="module")
def written(make, tmp_path_factory):
    """Two twins of the paper and a folder whose records are damaged: the chapters by folder or study, and the page."""
    root = tmp_path_factory.mktemp("collection") / "paper"
    for name in TWINS:
        study(make, root / name, f"paper/{name}", f"Does {name} scale?")
    damaged = study(make, root / "fig07_cpu", "paper/fig07_cpu")
    (damaged / "resolved.json").write_text("{")
    chapters, page = write_collection(root, sorted(root.iterdir()))
    return {one.folder or one.study: one for one in chapters}, page


def test_studies_stand_in_the_order_of_the_papers_figures(written):
    page = Page(written[1].read_text())
    figures = ["s 4 and 5", " 6", " 7", "s 8 and 9", "s 10 and 11", "s 12 and 13", " 14", " 15", "s 16 and 17"]
    assert page.headings == [*(f"Figure{number}, on CPUs" for number in figures), "paper/imagenet100_cpu"]


def test_each_study_has_its_question_its_answer_and_its_figures(written):
    text = written[1].read_text()
    for name in TWINS:
        assert f"Does {name} scale?" in text
        shown = [figure.part.name for figure in written[0][name].figures]
        assert shown[:2] == ["speedup", "split"]
        assert len(shown) == collection.MOST_FIGURES
    assert text.count("Yes: 2 processes train 2.00x") == len(TWINS)
    assert text.count("<svg") == collection.MOST_FIGURES * len(TWINS)


def test_every_link_leads_to_a_file_or_a_section(written):
    page = Page(written[1].read_text())
    assert len(page.ids) == len(set(page.ids))
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        else:
            assert (written[1].parent / unquote(link)).is_file()
    assert sum(not link.startswith("#") for link in page.links) == len(TWINS)


def test_a_damaged_study_is_shown_as_such_and_the_others_are_there(written):
    chapters, page = written
    assert chapters["fig07_cpu"].state == "cannot be read"
    assert "`resolved.json` is damaged" in chapters["fig07_cpu"].problem
    assert "<code>resolved.json</code> is damaged" in page.read_text()


def test_shipped_studies_of_the_same_kind_that_were_not_run_are_named(written):
    chapters, page = written
    assert chapters["paper/fig14_cpu"].state == "not run"
    assert "<code>vitscale run paper/fig14_cpu</code>" in page.read_text()
    assert "paper/fig14" not in chapters
    assert "paper/fig07_cpu" not in chapters


def test_studies_of_ones_own_miss_nothing(make, tmp_path):
    chapters, _ = write_collection(tmp_path, [study(make, tmp_path / name, name) for name in ("mine", "m")])
    assert [one.heading for one in chapters] == ["m", "mine"]


def test_what_was_skipped_is_said_with_its_rule(make, tmp_path):
    root = study(make, tmp_path / "fig14_cpu", "paper/fig14_cpu")
    rule = "`nodes = 2`: ranks are started on this host only"
    (root / "plan.json").write_text(f'{{"schema_version": 1, "skipped": [{{"label": "away", "reason": "{rule}"}}]}}')
    chapters, page = write_collection(tmp_path, [root])
    assert next(one.state for one in chapters if one.folder) == "2 runs, 1 skipped"
    assert f"<td>{rule}</td>" in page.read_text()


def test_no_name_acts_in_the_page_or_breaks_a_link(make, tmp_path):
    hostile_text = "<img src=x onerror=alert(1)></script><script>alert(2)</script>{{7*7}}"
    folder = tmp_path / '"><img src=x onerror=alert(1)> #?%'
    root = make.write_study(folder, hostile_text)
    make.write_launch(root, make.make_spec(1), 0, 0.1, device=hostile_text)
    _, written = write_collection(tmp_path, [root])
    page = Page(written.read_text())
    assert page.acting == []
    assert "script-src &#39;none&#39;" in written.read_text()
    assert [(written.parent / unquote(link)).is_file() for link in page.links if link[0] != "#"] == [True]


def test_a_page_that_cannot_be_written_is_an_error_of_ours(tmp_path):
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(ResultsError, match="cannot make folder"):
        collection.write_collection(tmp_path, [])


@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("paper/fig06", "Figure 6"),
        ("paper/fig04_05_cpu", "Figures 4 and 5, on CPUs"),
        ("fig14", "Figure 14"),
        ("figment", "figment"),
        ("paper/imagenet100", "paper/imagenet100"),
    ],
)
def test_a_heading_is_made_of_the_name(name, heading):
    assert collection.Chapter("", name, "").heading == heading


def test_a_folder_whose_name_is_not_utf_8_is_linked_by_its_bytes(make, tmp_path):
    folder = tmp_path / os.fsdecode(b"\xe9tude")
    study(make, folder, "other")
    _, page = write_collection(tmp_path, [folder])
    assert "../%E9tude/report/index.html" in Page(page.read_text()).links
