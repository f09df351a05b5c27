"""The page: one file that needs no network and no server, and may run only the two scripts that are in it.

Vega runs with its expression interpreter (`ast`), so the policy needs no `unsafe-eval`. The bundle is plain text, not
packed: an attachment that unpacks a script in the browser is what mail filters look for.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from vitscale.report.bundle import bundle
from vitscale.report.document import LIKE_FOR_LIKE, Document
from vitscale.report.escape import script_json
from vitscale.report.figures import VEGA_LITE, Drawing

_SNIPPET = "window.vegaEmbed = vegaEmbed;"


def render(document: Document, drawings: Sequence[Drawing]) -> str:
    """`index.html`."""
    style = template("style.css")
    # Without a figure there is nothing to run.
    scripts = [bundle(_SNIPPET, VEGA_LITE), template("page.js")] if drawings else []
    page = environment().get_template("page.html.j2")
    return page.render(
        document=document,
        like_for_like=LIKE_FOR_LIKE,
        policy=policy(style, scripts),
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        still={one.name: Markup(one.svg) for one in drawings},
        charts={one.name: Markup(script_json(one.spec)) for one in drawings},
    )


def environment() -> Environment:
    """Templates that escape everything, and take nothing for empty that is not there."""
    made = Environment(
        loader=PackageLoader("vitscale.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters["code"] = _code
    return made


def _code(text: str) -> Markup:
    """What stands between backticks as code; everything is escaped first."""
    pieces = [escape(piece) for piece in text.split("`")]
    if len(pieces) % 2 == 0:
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(one) if index % 2 else one for index, one in enumerate(pieces)
    )


def policy(style: str, scripts: Sequence[str]) -> str:
    """The content security policy of a page: this style and these scripts, nothing else."""
    allowed = " ".join(_hash(script) for script in scripts) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def template(name: str) -> str:
    """Text of a file in `templates`."""
    return (files("vitscale.report") / "templates" / name).read_text(encoding="utf-8")
