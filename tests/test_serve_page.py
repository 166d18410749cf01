"""The page at `/`: what it promises in its text, and what a person sees in a real browser, without a mouse."""

import base64
import hashlib
import json
import re
import urllib.error
import urllib.request
from contextlib import contextmanager
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import LACKING, chromium

from prodml.bundle.bundle import open_bundle, write_manifest
from prodml.core.files import read_json, write_json
from prodml.serve.models import Served
from prodml.serve.page import fields_of, figures_of, page_of, zones_of
from prodml.serve.server import all_settings, make_service, running

in_a_browser = pytest.mark.skipif(LACKING is not None, reason=f"{LACKING}")
NASTY = "</script><img src=x onerror=alert(1)>\"'&"


@contextmanager
def site(bundle, tables=None):
    """The address of a server with the page."""
    settings = all_settings({"server": {"port": 0}, "models": {"unsigned": True, "rejected": True}, **(tables or {})})
    service = make_service([bundle], settings)
    with running(service, settings) as address:
        yield address


@pytest.fixture(scope="module")
def bundle(small_bundle, tmp_path_factory):
    """The small bundle with a card, and a column that only some values fit."""
    import shutil

    folder = tmp_path_factory.mktemp("page") / "small"
    shutil.copytree(small_bundle, folder)
    (folder / "model_card.html").write_text("<!doctype html><title>The card</title><p>What it is for.<script>document.title = 'ran'</script>")
    write_json(folder / "model_card.json", {"summary": f"Is it late? {NASTY}", "verdict": "Accepted.", "facts": [{"label": "ROC AUC", "value": "0.7", "note": NASTY}]})
    contract = read_json(folder / "contract.json")
    contract["row"]["rules"].append({"name": "carrier is one of two", "rule": "allowed", "columns": ["carrier"], "values": ["AA", NASTY, "UA"], "severity": "error"})
    write_json(folder / "contract.json", contract)
    write_manifest(folder, {})
    return folder


@pytest.fixture(scope="module")
def address(bundle):
    with site(bundle) as address:
        yield address


def get(address, **headers):
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as reply:
        return reply.headers, reply.read().decode()


class Elements(HTMLParser):
    """All elements: name, attributes, and the text directly inside."""

    def __init__(self, text):
        super().__init__()
        self.all, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.all.append([tag, dict(attributes), ""])
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(self.all[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, f"{tag} is closed, and was not the last that was opened"

    def handle_data(self, text):
        if self.open:
            self.open[-1][2] += text


def test_every_control_has_a_name_and_every_reference_an_end(address):
    elements = Elements(get(address)[1])
    assert elements.open == []
    ids = [own["id"] for _, own, _ in elements.all if "id" in own]
    assert len(ids) == len(set(ids))
    labels = {own["for"]: text for tag, own, text in elements.all if tag == "label"}
    controls = [own for tag, own, _ in elements.all if tag in ("input", "select", "textarea") and own.get("type") != "hidden"]
    assert controls and all(labels.get(own["id"], "").strip() for own in controls)
    assert all(text.strip() for tag, own, text in elements.all if tag in ("button", "h1", "h2", "summary", "title"))
    pointed = [place for _, own, _ in elements.all for name in ("aria-describedby", "aria-labelledby", "aria-controls", "list", "for") for place in own.get(name, "").split()]
    assert set(pointed) <= set(ids), set(pointed) - set(ids)
    assert dict(elements.all[0][1]).get("lang") == "en" and {"main", "header", "footer", "h1"} <= {tag for tag, *_ in elements.all}
    roles = {own.get("id"): own.get("role") for _, own, _ in elements.all}
    assert roles["said"] == "status" and roles["problem"] == "alert"
    assert not [own for _, own, _ in elements.all if int(own.get("tabindex", 0)) > 0 or any(name.startswith("on") or name == "style" for name in own)]
    required = {text.strip(" *"): own.get("aria-required") for text, own in ((labels[own["id"]], own) for own in controls)}
    assert required["delay"] == "true" and required["wind"] is None


def test_the_policy_lets_only_this_style_and_script_run(address):
    headers, text = get(address)
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == policy["form-action"] == "'self'" and "unsafe" not in str(policy)
    for tag, kind in (("style", "style-src"), ("script", "script-src")):
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL).group(1)
        assert policy[kind] == f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
    addresses = [own[name] for _, own, _ in Elements(text).all for name in ("src", "href", "action") if name in own]
    assert not [one for one in addresses if re.match(r"(https?:)?//", one)], "nothing comes from elsewhere"
    assert "url(" not in text and "@import" not in text and "innerHTML" not in text
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


def test_what_a_bundle_says_cannot_become_code(address):
    text = get(address)[1]
    assert NASTY not in text and text.count("<script") == 2 and "<img" not in text
    data = re.search(r'<script type="application/json" id="model">(.*?)</script>', text, re.DOTALL).group(1)
    assert "<" not in data and [field["name"] for field in json.loads(data)["fields"]] == ["delay", "carrier", "wind"]


def test_the_card_comes_in_a_sandbox_and_only_if_it_is_the_bundles(bundle, address, tmp_path):
    headers, text = get(f"{address}/card")
    assert "What it is for." in text and headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    import shutil

    shutil.copytree(bundle, tmp_path / "copy")
    with site(tmp_path / "copy") as other:
        (tmp_path / "copy" / "model_card.html").write_text("Another card.")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"{other}/card")


@pytest.mark.parametrize("quantiles", [[0.25, 0.875], [0.9, 0.05], [0.3, None], [None, None], [0.5, 0.5]])
def test_the_zones_are_those_of_the_bundles_sets(small_bundle, quantiles):
    bundle = open_bundle(small_bundle, unsigned=True)
    bundle.conformal = bundle.conformal | {"quantiles": quantiles}
    zones, kinds = zones_of(bundle.conformal), {(True, False): "no", (False, True): "yes", (True, True): "both", (False, False): "none"}
    probabilities = np.array([p for p in np.linspace(0.003, 0.997, 211, dtype=np.float32) if min(abs(p - edge) for start, end, _ in zones for edge in (start, end)) > 1e-4], np.float32)
    for p, own in zip(probabilities.tolist(), bundle.sets(probabilities).tolist()):
        assert [kind for start, end, kind in zones if start <= p < end] == [kinds[tuple(own)]], p


def test_figures_count_what_was_asked_of_the_model(bundle):
    with site(bundle) as address:
        row = json.dumps({"delay": 0.4, "wind": None, "carrier": "UA"}).encode()
        for _ in range(3):
            urllib.request.urlopen(urllib.request.Request(f"{address}/v1/predict", row, {"Content-Type": "application/json"})).read()
        get(f"{address}/")
        told = json.loads(get(f"{address}/figures.json")[1])
    assert told["requests"] == {"200": 3} and sum(told["latency"]["counts"]) == 3 and sum(told["predictions"]["counts"]) == 3
    assert len(told["predictions"]["edges"]) == len(told["predictions"]["counts"]) == 20
    assert figures_of("", 0.0)["latency"] == {"edges": [], "counts": []}


def test_a_bundle_without_card_explanations_or_sets_has_a_page_too(small_bundle):
    bundle = open_bundle(small_bundle, unsigned=True)
    bundle.explaining = bundle.conformal = None
    text = page_of(Served(bundle, "1", None), guarded=True).body.decode()
    assert '"explains": false' in text and 'id="key"' in text and "Read the model card" not in text
    Elements(text)


@pytest.fixture
def keys(tmp_path):
    """A file of keys, and two of them: one may predict, one may do nothing of the page's."""
    from prodml.serve.access import new_api_key

    path = tmp_path / "keys.json"
    return path, new_api_key(path, "may", ["predict", "explain", "audit"]).reveal(), new_api_key(path, "may not", ["feedback"]).reveal()


def test_the_card_asks_for_a_key_where_the_rest_does(bundle, keys):
    path, may, may_not = keys
    with site(bundle, {"access": {"keys": str(path)}}) as address:
        assert 'type="password"' in get(address)[1]
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        for body, status in ((f"key={may}", 200), (f"key={may_not}", 403), ("key=no", 401), ("", 401)):
            try:
                found = urllib.request.urlopen(urllib.request.Request(f"{address}/card", body.encode(), form)).status
            except urllib.error.HTTPError as error:
                found = error.code
            assert found == status, body
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(f"{address}/figures.json")


# A real browser, and a person without a mouse.

@pytest.fixture(scope="module")
def browser():
    with chromium() as page:
        yield page


def focused(page):
    return page.js("document.activeElement.id || document.activeElement.textContent.trim() || document.activeElement.tagName")


def tab_to(page, name, back=False):
    """Press Tab until the element has the focus; what was passed on the way."""
    passed = []
    for _ in range(60):
        page.key("Tab", 8 if back else 0)
        passed.append(focused(page))
        if passed[-1] == name:
            return passed
    raise AssertionError(f"{name} is not reached by Tab, only {passed}")


@in_a_browser
def test_a_row_is_asked_by_keyboard_alone(browser, address):
    browser.size(1280, 900)
    browser.go(address)
    browser.key("Tab")
    assert focused(browser) == "To the row"
    tab_to(browser, "c-1")
    browser.write("UA")
    outline = browser.js("getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "solid3px", "the focus is seen"
    browser.js("document.activeElement.value = 'UA'")
    tab_to(browser, "c-0", back=True)
    browser.write("0.4")
    browser.key("Enter")
    browser.until("document.querySelector('#answer .shares') !== null")
    told = json.loads(browser.js("ask('v1/predict', JSON.stringify(row())).then(JSON.stringify)"))
    shown = browser.js("document.getElementById('probability').textContent")
    assert shown == f"{told['probability'] * 100:.1f}%" and browser.js("document.getElementById('said').textContent").startswith(shown)
    assert browser.js("document.querySelectorAll('#answer svg').length") == 2
    why = json.loads(browser.js("JSON.stringify(last.why)"))
    assert abs(why["base"] + sum(why["shares"].values()) - np.log(told["probability"] / (1 - told["probability"]))) < 1e-4
    assert abs(browser.js("steps(last.why).at(-1).to") - why["base"] - sum(why["shares"].values())) < 1e-9, "the bars end at the answer"
    # All the rest is reached, and the way out leads past every control.
    order = tab_to(browser, "the description of the interface")
    assert [name for name in order if name in ("c-2", "ask", "typical", "clear", "The shares as a table", "pause", "Read the model card")] == ["c-2", "ask", "typical", "clear", "The shares as a table", "pause", "Read the model card"]
    assert browser.complaints() == []
    assert {one.split("/")[2] for one in browser.asked() if not one.startswith(("data:", "about:", "chrome"))} == {address.split("/")[2]}, "nothing is asked of another host"


@in_a_browser
def test_what_is_wrong_stands_next_to_its_field_and_has_the_focus(browser, address):
    browser.size(1280, 500)
    browser.go(address)
    tab_to(browser, "c-0")
    browser.write("99")
    tab_to(browser, "c-2")
    browser.write("windy")
    browser.key("Enter")
    browser.until("document.querySelector('.problem') !== null")
    assert focused(browser) == "c-0"
    assert browser.js("[...document.querySelectorAll('[aria-invalid=true]')].map(one => one.name).join()") == "delay,wind"
    assert browser.js("document.getElementById('w-0').textContent") == "Send a value from -10 and up to 10." and browser.js("document.getElementById('w-2').textContent") == "Send a number, or leave the field empty."
    assert "w-0" in browser.js("document.getElementById('c-0').getAttribute('aria-describedby')")
    covered = "(() => { const box = document.activeElement.getBoundingClientRect(); return document.elementFromPoint(box.x + 5, box.bottom - 5) !== document.activeElement; })()"
    assert browser.js(covered) is False, "nothing covers what is to be mended"
    browser.js("document.activeElement.select()")
    browser.write("1")
    tab_to(browser, "c-2")
    browser.js("document.activeElement.select()")
    browser.write("2")
    browser.key("Enter")
    browser.until("document.querySelector('#answer .shares') !== null && document.querySelector('.problem') === null && document.querySelector('[aria-invalid]') === null")
    browser.write("3")
    assert browser.js("document.getElementById('old').textContent") == "to the row before it was changed"


@in_a_browser
def test_columns_that_break_a_rule_alike_share_a_line(browser, address):
    browser.go(address)
    browser.js("""refused({ title: "No", status: 422, errors: ["delay", "wind", "carrier"].map(column => ({ column, rule: "known", remedy: column === "carrier" ? "Send a word." : "Send a value." })) })""")
    assert browser.js("[...document.querySelectorAll('.problem li')].map(one => one.textContent).join('|')") == "delay, wind: known. Send a value.|carrier: known. Send a word."
    browser.js("document.querySelectorAll('.problem a')[1].click()")
    assert focused(browser) == "c-2"


@in_a_browser
def test_the_typical_request_of_the_bundle_goes_first_and_what_is_not_known_is_asked_for(browser, address, small_bundle):
    served = Served(open_bundle(small_bundle, unsigned=True), "1", small_bundle)
    served.bundle.rowwise = {"example": {"carrier": "ZZ", "delay": 0.125}}
    assert {field.name: field.example for field in fields_of(served)} | {"wind": None} == {"delay": 0.125, "carrier": "ZZ", "wind": None}
    browser.go(address)
    browser.js("model.fields[0].example = null; document.getElementById('typical').click()")
    assert focused(browser) == "c-0" and "typical of delay: give a value" in browser.js("document.getElementById('filled').textContent")


@in_a_browser
@pytest.mark.parametrize("text", ['{"delay": 0.25, "carrier": "UA", "x": [1]}', '[{"delay": 0.25, "wind": null, "carrier": "UA", "more": 1}]', "delay,carrier,x\n0.25,UA,\"a \"\"b\"\", c\"", "delay\tx\tcarrier\n0.25\t\tUA"])
def test_a_row_is_pasted(browser, address, text):
    browser.go(address)
    tab_to(browser, "Paste a row")
    browser.key("Enter")
    tab_to(browser, "paste")
    browser.write(text)
    browser.key("Enter", 2)
    assert "filled; 1 columns are none" in browser.until("document.getElementById('filled').textContent")
    assert json.loads(browser.js("JSON.stringify(row())")) == {"delay": 0.25, "wind": None, "carrier": "UA"}
    browser.key("Tab")
    assert focused(browser) == "fill", "the text field lets go of the focus"


@in_a_browser
def test_no_key_is_asked_for_twice_or_kept(browser, bundle, keys):
    path, may, _ = keys
    with site(bundle, {"access": {"keys": str(path)}}) as address:
        browser.go(address)
        tab_to(browser, "typical")
        browser.key("Enter")
        tab_to(browser, "ask", back=True)
        browser.key("Enter")
        browser.until("document.querySelector('.problem') !== null")
        assert focused(browser) == "key"
        browser.write(may)
        tab_to(browser, "ask")
        browser.key("Enter")
        browser.until("document.querySelector('#answer .shares') !== null")
        browser.until("document.getElementById('f-answers').textContent === '1'")
        assert browser.js("JSON.stringify([localStorage.length, sessionStorage.length, document.cookie])") == '[0,0,""]'
        assert not [one for one in browser.asked() if may in one]
        browser.go(address)
        assert browser.js("document.getElementById('key').value") == ""


@in_a_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (360, False), (360, True)])
def test_it_fits_and_can_be_read(browser, address, width, dark):
    browser.size(width, 800, dark)
    browser.go(address)
    browser.js("document.getElementById('typical').click(); put({delay: 3}); document.getElementById('ask').click()")
    browser.until("document.querySelector('#answer .shares') !== null")
    assert browser.js("document.documentElement.scrollWidth") <= width
    assert browser.js("[...document.querySelectorAll('main section *')].filter(one => { const box = one.getBoundingClientRect(); return box.width > 1 && (box.right > innerWidth + 1 || box.left < -1); }).map(one => one.outerHTML.slice(0, 80)).join()") == ""
    # WCAG 2.2 AA: 4.5 to 1 for text.
    worst = browser.js("""(() => {
      const light = ([r, g, b]) => { const f = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
      const rgb = text => text.match(/[\\d.]+/g).map(Number);
      const under = node => { for (; node; node = node.parentElement) { const c = rgb(getComputedStyle(node).backgroundColor); if (c.length < 4 || c[3] === 1) return c; } };
      return [...document.querySelectorAll('body *:not(script):not(style):not(svg *)')].filter(one => one.getClientRects().length && [...one.childNodes].some(n => n.nodeType === 3 && n.data.trim())).map(one => {
        const a = light(rgb(getComputedStyle(one).color)), b = light(under(one));
        return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), one.textContent.slice(0, 40)];
      }).sort((a, b) => a[0] - b[0])[0];
    })()""")
    assert worst[0] >= 4.5, worst
