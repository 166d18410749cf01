"""The model card: what data or a person writes stays text, what is missing is said, and the bytes repeat."""

import html
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT
from markdown_it import MarkdownIt

from prodml.core.config import compose, read_params
from prodml.core.errors import InputError
from prodml.core.files import write_json
from prodml.trust.card import STAGES, make_card, read_statements, release_card
from prodml.trust.card_pages import CSS, html_page, markdown_page, pdf_page, read_card, write_card
from prodml.trust.card_figures import visible
from prodml.trust.models import write_report

# Each would be more than text to one of the three pages: HTML, Markdown (with formulas and mentions), Typst; and what a font lacks.
HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><b>', "a | b", "# heading", "- item", "1. item", "***", "[x](javascript:alert(1))", "![x](https://evil.example/x.png)",
    "`code`", "~~gone~~", "$x^2$", "$\\frac{", "@someone", "&lt;b&gt;", "\\", "a\nb", "---", "=", '#panic("read as a program")', "#[", "*a", "_b", "]", "// a", "/* a", "<label>", "北京", "😀", "مرحبا", "a\u202eb", "​",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Artifacts of a small run whose every name is hostile, and what `make_card` wants beside them."""
    artifacts = tmp_path_factory.mktemp("run") / "artifacts"
    for part in ("features", "evaluate"):
        (artifacts / part).mkdir(parents=True)
    target, columns = {"column": HOSTILE[0], "positive": HOSTILE[3]}, [{"name": name, "vocabulary": []} for name in HOSTILE]
    write_json(artifacts / "features" / "encoding.json", {"target": target, "numeric": [], "categorical": columns})
    pq.write_table(pa.table({"label": [0, 1] * 10, "month": ["2013-01"] * 20}), artifacts / "features" / "train.parquet")
    pq.write_table(pa.table({"split": ["validation"] * 10 + ["test"] * 10, "label": [0, 1] * 10, "month": ["2013-02"] * 10 + ["2013-03"] * 10}), artifacts / "evaluate" / "predictions.parquet")
    slices = {"columns": ["group", "slice", "rows", "roc_auc", "low", "high"], "rows": [["all", f"x = {name}", 100, 0.7, 0.6, 0.8] for name in HOSTILE], "note": " ".join(HOSTILE)}
    outages = {"columns": ["feed", "model", "roc_auc", "low", "high"], "rows": [[name, "int8", 0.7, 0.6, 0.8] for name in HOSTILE], "note": ""}
    odd = {"columns": HOSTILE, "rows": [HOSTILE], "note": ""}
    for stage, tables in (("slices", {"declared": slices}), ("robustness", {"outages": outages}), ("behaviour", {HOSTILE[0]: odd})):
        write_report(artifacts / stage / f"{stage}.json", {HOSTILE[5]: 1.0}, tables)
    said = {"description": " ".join(HOSTILE), "caveats": [name for name in HOSTILE if name.strip()], "license": "apache-2.0"}
    gates = [{"name": name, "stage": "slices", "measure": name, "value": 0.7, "bound": name, "met": True, "why": name} for name in HOSTILE]
    about = {"name": "flights", "serves": "int8", "graphs": {"int8": "int8.onnx"}, "architecture": HOSTILE[0]}
    metrics = {"int8": {"test": {"roc_auc": 0.76, "f1": 0.5}}, "dense": {"test": {"roc_auc": 0.75}}}
    return {"artifacts": artifacts, "about": about, "sizes": {"int8": 12507}, "metrics": metrics, "statements": said, "provenance": {"code": "0" * 64}, "gates": gates}


@pytest.fixture(scope="module")
def card(run):
    return make_card(**run)


class Page(HTMLParser):
    """The elements of a page, its text, and the addresses it names."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.texts, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]

    def handle_data(self, data):
        self.texts.append(data)


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_html_takes_nothing_for_markup(card):
    page = Page(html_page(card))
    assert not {"script", "b", "label", "iframe", "object", "embed", "link", "form"} & set(page.tags)
    assert {name for _, name, _ in page.attributes if name.startswith("on")} == set()
    sources = {value.split(":")[0] for _, name, value in page.attributes if name == "src"}
    assert sources == {"data"}
    assert all(value.startswith(("#", "https://")) for _, name, value in page.attributes if name == "href")
    cells = {squeezed(text) for text in page.texts}
    assert all(squeezed(visible(name)) in cells for name in HOSTILE), "the names are there as they are"


def test_markdown_takes_nothing_for_markup(card):
    text = markdown_page(card).split("---\n", 2)[2]
    page = Page(MarkdownIt("gfm-like", {"linkify": False}).render(text))
    assert not {"script", "b", "label", "code", "s", "hr"} & set(page.tags)
    assert all(value.startswith("figures/") for tag, name, value in page.attributes if (tag, name) == ("img", "src"))
    assert not [value for tag, name, value in page.attributes if name == "href" and "evil" not in value and not value.startswith(("#", "https://"))]
    # An address in a statement is a link that a reader may follow; it is never loaded.
    said = squeezed(" ".join(page.texts))
    assert all(squeezed(visible(name)) in said for name in HOSTILE)
    assert not re.search(r"(?<!&#)[$@](?!\w*;)", text.split("## Contents")[1]), "no formula, no mention"


def test_every_table_of_markdown_keeps_its_columns(card):
    lines = markdown_page(card).split("\n")
    unescaped = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
    tables = "\n".join("t" if line.startswith("|") else "" for line in lines).split()
    assert len(tables) == len(unescaped) > 50 and set(unescaped) <= {3, 4, 5, 6, 7, 8, len(HOSTILE) + 1}


def test_a_statement_is_told_from_what_was_computed(card):
    pages = {"*Stated by a person:*": markdown_page(card), '<div class="said">': html_page(card)}
    assert {page.count(mark) for mark, page in pages.items()} == {2}, "the description and the caveats"


def test_pdf_reads_no_program(card):
    first = pdf_page(card)
    assert first.startswith(b"%PDF-1.7") and b"CreationDate" not in first and len(first) > 50_000


def test_what_was_not_examined_is_said(run, tmp_path):
    card = make_card(tmp_path / "nothing", run["about"], run["sizes"], {}, {}, {})
    page, text = Page(html_page(card)), markdown_page(card)
    for stage, (title, question) in STAGES.items():
        assert any(f"Not examined: {question}" in said for said in page.texts), stage
        assert title.split()[0] in text
    assert text.count("Missing: nobody has stated") == html.unescape(html_page(card)).count("Missing: nobody has stated") > 10
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "unknown" and "No gate has judged this model" in text
    assert pdf_page(card).startswith(b"%PDF")


def test_front_matter_is_what_the_hub_reads(card):
    text = markdown_page(card)
    assert text.startswith("---\n")
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "apache-2.0" and head["pipeline_tag"] == "tabular-classification" and head["library_name"] == "onnx"
    assert all(isinstance(item, str) for name in ("tags", "datasets", "metrics") for item in head[name])
    # The fields that the hub requires of a result: github.com/huggingface/hub-docs, modelcard.md.
    (index,) = head["model-index"]
    (result,) = index["results"]
    assert index["name"] == "flights" and result["task"]["type"] == "tabular-classification" and {"type", "name"} <= set(result["dataset"])
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [("roc_auc", 0.76), ("f1", 0.5)]
    assert all(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) for name in head["datasets"])


def test_the_hubs_own_library_reads_it(card):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    data = hub.ModelCard(markdown_page(card)).data
    assert data.license == "apache-2.0" and {result.metric_type for result in data.eval_results} == {"roc_auc", "f1"}


@pytest.mark.slow
def test_bytes_repeat_in_another_process(run, tmp_path):
    (tmp_path / "given.json").write_text(json.dumps(run, default=str))
    program = "import json, sys\nfrom prodml.trust.card import make_card\nfrom prodml.trust.card_pages import write_card\nwrite_card(sys.argv[2], make_card(**json.load(open(sys.argv[1]))))"
    (tmp_path / "matplotlibrc").write_text("font.size: 20\nlines.linewidth: 9\nsvg.fonttype: none\n")
    settings = [{"PYTHONHASHSEED": "1", "TZ": "UTC"}, {"PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}]
    for place, setting in enumerate(settings):
        subprocess.run([sys.executable, "-c", program, tmp_path / "given.json", tmp_path / str(place)], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)} | setting)
    files = sorted(file.relative_to(tmp_path / "0") for file in (tmp_path / "0").rglob("*") if file.is_file())
    assert {"model_card.md", "model_card.html", "model_card.pdf", "model_card.json"} < {str(file) for file in files}
    assert [file for file in files if (tmp_path / "0" / file).read_bytes() != (tmp_path / "1" / file).read_bytes()] == []


def test_a_release_adds_its_section_without_the_run(card, tmp_path):
    write_card(tmp_path / "bundle", card)
    assert read_card(tmp_path / "bundle") == card
    released = release_card(read_card(tmp_path / "bundle"), {"revision": "abc1234", "date": "2026-01-31", "seconds": {"train": 1.5}, "energy_kwh": None, "public_key": HOSTILE[0]})
    assert released == release_card(card, {"revision": "abc1234", "date": "2026-01-31", "seconds": {"train": 1.5}, "energy_kwh": None, "public_key": HOSTILE[0]})
    page = Page(html_page(released))
    assert "abc1234" in page.texts and "script" not in page.tags and "abc1234" not in html_page(card)


def test_no_name_of_a_file_comes_from_data(card, tmp_path):
    write_card(tmp_path, card)
    names = {file.stem for file in (tmp_path / "figures").iterdir()}
    assert names == {"data-rows", "slices-declared", "robustness-outages"}


def test_html_can_be_read_by_everyone(card):
    page = Page(html_page(card))
    assert ("html", "lang", "en") in page.attributes
    assert all(value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")) and page.tags.count("img") == sum(name == "alt" for _, name, _ in page.attributes) > 1
    assert page.tags.count("caption") == page.tags.count("table") > 5
    assert {value for tag, name, value in page.attributes if (tag, name) == ("th", "scope")} == {"col", "row"} and page.tags.count("th") == sum(name == "scope" for _, name, _ in page.attributes)
    identities = [value for _, name, value in page.attributes if name == "id"]
    assert len(set(identities)) == len(identities) and {value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("#")} <= set(identities)
    assert page.tags.count("h1") == 1


def luminance(color: str) -> float:
    digits = color.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_text_stands_out_from_its_page(theme):
    """WCAG 2.2, 1.4.3: 4.5 to 1, in the light and the dark theme."""
    colors = dict(re.findall(r"--([\w-]+):(#[0-9a-f]{3,6})", re.findall(r":root\{[^}]*\}", CSS)[theme]))
    pairs = [(text, page) for text in ("ink", "soft", "link", "good", "bad", "said") for page in ("page", "panel")] + [(state, f"{state}-page") for state in ("good", "bad", "open")]
    for text, page in pairs:
        light, dark = sorted((luminance(colors[text]), luminance(colors[page])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, page)


def test_a_table_takes_the_statements_of_its_own_name():
    assert read_statements(compose(["data=flights"], ROOT)["card"]).intended_use
    assert compose(["data=breast_cancer"], ROOT)["card"] == {}, "another table has not the statements of this one"
    for file in (ROOT / "conf" / "card").glob("*.yaml"):
        assert (ROOT / "conf" / "data" / file.name).exists(), f"{file.name}: there is no such table"
        read_statements(yaml.safe_load(file.read_text()))
    assert read_params(ROOT)["card"] == compose([], ROOT)["card"]


@pytest.mark.parametrize("wrong", [{"intended_uses": "a"}, {"owners": 1}, {"caveats": ["a", 2]}, {"contact": " "}, {"datasets": "flights"}])
def test_a_statement_that_a_card_does_not_know_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        read_statements(wrong)


def test_a_card_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no model card"):
        read_card(Path(tmp_path))
