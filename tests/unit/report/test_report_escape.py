"""Names of strangers in every format: nothing in them acts, and what they say can still be read."""

import base64
import csv
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from vitscale.report.escape import cleaned, csv_text, latex, markdown, plain, script_json


class Page(HTMLParser):
    """Elements, attributes, scripts and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.words, self.open = [], [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "script":
            self.scripts.append([dict(attrs), ""])
        self.open = tag

    def handle_endtag(self, tag):
        self.open = None

    def handle_data(self, data):
        if self.open == "script":
            self.scripts[-1][1] += data
        elif self.open != "style":
            self.words.append(data)


@pytest.fixture(scope="module")
def page(hostile):
    return Page((hostile[0] / "index.html").read_text())


def test_no_element_or_handler_comes_from_a_name(page):
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not [value for name, value in page.attributes if name in ("href", "src", "xlink:href", "style")]
    assert "<img src=x onerror=alert(1)>" in "".join(page.words)
    assert "{{7*7}}" in "".join(page.words)


def test_the_only_scripts_are_ours_and_the_policy_names_their_very_bytes(page):
    policy = next(value for name, value in page.attributes if name == "content" and "default-src" in value)
    code = [text for attributes, text in page.scripts if not attributes]
    data = [text for attributes, text in page.scripts if attributes]
    assert len(code) == 2
    for text in code:
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert all("<" not in text and ">" not in text for text in data)
    assert all(json.loads(text)["config"] for text in data)


def test_no_file_holds_a_control_character_or_turns_direction(hostile):
    for path in hostile[0].rglob("*"):
        if path.suffix in (".html", ".md", ".csv", ".tex", ".svg"):
            text = path.read_text()
            if path.name == "index.html":
                text = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text), path.name


def test_drawings_hold_names_as_text_only(hostile):
    for path in (hostile[0] / "figures").glob("*.svg"):
        tags = {one.tag.rpartition("}")[2] for one in ElementTree.parse(path).iter()}
        assert tags <= {"svg", "g", "path", "rect", "text", "tspan", "line", "defs", "clipPath", "title"}, path.name


def test_no_cell_of_a_sheet_is_a_formula(hostile):
    cells = []
    for path in (hostile[0] / "tables").glob("*.csv"):
        cells += [cell for row in csv.reader(io.StringIO(path.read_text())) for cell in row]
    assert any(cell.startswith("'=1+1") for cell in cells)
    for cell in cells:
        if cell.lstrip().startswith(("=", "+", "-", "@")):
            float(cell)


def test_a_name_breaks_no_markdown_table(hostile):
    lines = (hostile[0] / "report.md").read_text().splitlines()
    groups, group = [], []
    for line in [*lines, ""]:
        if line.startswith("|"):
            group.append(len(re.findall(r"(?<!\\)\|", line)))
        elif group:
            groups.append(group)
            group = []
    assert len(groups) >= 6
    assert all(len(set(group)) == 1 for group in groups)
    outside = "\n".join(lines).split("## The study, after overrides")[0]
    assert not re.search(r"(?<!\\)<", outside)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred\x1b[0m", "ared"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x00\x08\x9bb", "ab"),
        ("a\u202eb\u2066", "ab"),
        ("\ud800", "?"),
        ("a\r\nb\tc", "a\nb\tc"),
        ("µ × ± ü", "µ × ± ü"),
    ],
)
def test_plain_keeps_what_can_be_printed(text, shown):
    assert plain(text) == shown


def test_cleaned_reaches_every_text():
    assert cleaned({"a\x1b": ("b\x00", ["c\x7f", 1, None])}) == {"a": ("b", ["c", 1, None])}


def test_script_json_reads_back_and_cannot_end_its_element():
    document = {"</script>": "<!-- & \u2028\u2029"}
    text = script_json(document)
    assert json.loads(text) == document
    assert not re.search("[<>&\u2028\u2029]", text)
    with pytest.raises(ValueError, match="JSON"):
        script_json(float("nan"))


def test_csv_guards_texts_and_leaves_numbers():
    text = csv_text(["a"], [["=1"], ["+1"], ["-1"], ["@x"], [" =1"], ["\t=1"], [-1.5], [None], [True], ["plain"]])
    assert text.splitlines()[1:7] == ["'=1", "'+1", "'-1", "'@x", "' =1", "'\t=1"]
    assert text.splitlines()[7:] == ["-1.5", '""', "true", "plain"]


def test_latex_escapes_every_special_character():
    assert latex("a_b & 5 % $x$ #1 {y} ~ ^ \\input") == (
        r"a\_b \& 5 \% \$x\$ \#1 \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}input"
    )
    assert latex("two\nlines") == "two lines"


def test_markdown_escapes_what_would_be_markup_and_keeps_names():
    assert markdown("vit_tiny_patch16_224 | <b> `x` *y* [z](w) _e_") == (
        r"vit_tiny_patch16_224 \| \<b\> \`x\` \*y\* \[z\](w) \_e\_"
    )
    assert markdown("two\nlines &lt;") == "two lines &amp;lt;"
