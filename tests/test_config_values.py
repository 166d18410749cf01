"""What comes from a table into conf/ stays what it was: no reader of YAML, no OmegaConf and no DVC interprets it."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest
import yaml
from dvc.parsing.context import Context
from dvc.utils.serialize import load_yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from prodml.core.config import compose, escaped, read_params, unescaped, write_params, yaml_comment, yaml_value
from prodml.core.errors import InputError

ODD = [
    "", " ", "1e3", "12e4", "null", "Null", "~", "yes", "No", "on", "y", "true", "TRUE", "1_000", "0x10", "0o17", "017", "0b1", "1:30",
    "2020-01-01", "2020-01-01T00:00:00", "nan", ".nan", "inf", ".inf", "-.Inf", "+1", "1.", ".5", "-", "--", "---", "...", "?", "???",
    "?\\??", "${oc.env:HOME}", "${x}", "\\${x}", "\\\\${x}", "$\\{x}", "$\\\\{x}", "a${", "${", "$", "}${a", "a'${b\"", "${oc.env:HOME", "$${a}",
    "x\\", "#x", "a #x", "a: b", "a:", "- a", "[a]", "{a: b}", "&a", "*a", "!!int 1", "!a", "|", ">", "%", "@package", "`", ",", "<<", "=",
    "two\nlines", "\n", "a\r\nb", "\t", "tab\tin", "'", '"', "it's", 'say "so"', "é", "données", "日本", "😀", "\0", "\x07", "\x7f", "\x85",
    "\u2028", "\ufeff", "\ufffe", " lead", "trail ", "a  b", "x" * 300 + " " + "y" * 300,
]
TEXT = st.one_of(st.sampled_from(ODD), st.text(st.characters(exclude_categories=["Cs"])), st.text("${}\\?:'\"#\n 1e_", max_size=12))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose conf/data/shop.yaml is written anew by each example."""
    root = tmp_path_factory.mktemp("values")
    (root / "conf" / "data").mkdir(parents=True)
    (root / "conf" / "config.yaml").write_text("defaults: [{data: shop}, _self_]\nseed: 0\ncopy: ${data}\n")
    (root / "dvc.yaml").write_text("stages: {count: {cmd: x, params: [data]}}\n")
    return root


def through(root: Path, value: object, block: bool = False) -> None:
    """Send a value from conf/data to all who read it, and compare what they read."""
    drafted = yaml_value({"name": "shop", "value": value}, block=block)
    (root / "conf" / "data" / "shop.yaml").write_text(drafted + "\n", encoding="utf-8")
    assert compose(root=root)["data"]["value"] == value
    params = read_params(root=write_params(root=root).parent)
    assert params["data"]["value"] == value and params["copy"]["value"] == value
    # DVC reads params.yaml with another parser (YAML 1.2), hashes what it read, and fills its templates from it.
    read = load_yaml(str(root / "params.yaml"))
    assert unescaped(read["data"]["value"]) == value
    assert unescaped(Context(read).resolve("${data.name}")) == "shop"


def test_odd_texts_stay_text_as_values_and_as_keys(project: Path) -> None:
    through(project, ODD)
    through(project, ODD, block=True)
    through(project, {text: text for text in ODD})
    through(project, {text: [{text: text}] for text in ODD}, block=True)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(TEXT, max_size=40), st.dictionaries(TEXT, TEXT, max_size=20), st.booleans())
def test_any_text_comes_back(project: Path, texts: list[str], table: dict[str, str], block: bool) -> None:
    through(project, {"categories": texts, "columns": table}, block)


@settings(max_examples=150, deadline=None)
@given(st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)), max_leaves=12,
))
def test_yaml_and_omegaconf_read_what_was_written(value: object) -> None:
    for block in (False, True):
        text = yaml_value({"v": value}, block=block)
        assert unescaped(yaml.safe_load(text)["v"]) == value
        made = OmegaConf.create(text)
        OmegaConf.resolve(made)
        assert unescaped(OmegaConf.to_container(made)["v"]) == value
        assert type(unescaped(OmegaConf.to_container(made)["v"])) is type(value)


@given(st.text("${}\\?", max_size=8))
def test_escaping_is_undone(text: str) -> None:
    assert unescaped(escaped(text)) == text
    assert "${" not in escaped(text) and escaped(text) != "???"


def test_the_environment_stays_out(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "sesame")
    (project / "conf" / "data" / "shop.yaml").write_text("name: shop\nvalue: " + yaml_value(["${oc.env:SECRET}", "x${oc.env:SECRET}"]) + "\n")
    assert "sesame" not in write_params(root=project).read_text()
    assert read_params(project)["data"]["value"] == ["${oc.env:SECRET}", "x${oc.env:SECRET}"]


def test_numbers_and_dates_of_libraries() -> None:
    assert yaml_value({np.str_("a"): [np.int64(3), np.float32(0.5), np.bool_(True)]}) == "{a: [3, 0.5, true]}"
    assert yaml_value([datetime.date(2020, 1, 2), datetime.datetime(2020, 1, 2, 3, 4)]) == '["2020-01-02", "2020-01-02T03:04:00"]'
    with pytest.raises(InputError, match="is a object, which settings cannot hold"):
        yaml_value({"a": object()})


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_comment_stays_a_comment(text: str) -> None:
    assert yaml.safe_load(f"{yaml_comment(text)}\na: 1\n") == {"a": 1}
    assert "@package" not in yaml_comment(text + "@package _global_")


@pytest.mark.parametrize("first, wanted", [(KeyboardInterrupt(), KeyboardInterrupt), (KeyError("who"), InputError), (None, InputError)])
def test_an_error_of_hydra_that_says_nothing_is_told_by_what_led_to_it(project: Path, monkeypatch: pytest.MonkeyPatch, first, wanted) -> None:
    def fails(*given: object) -> None:
        raise ConfigCompositionException() from first

    monkeypatch.setattr("dvc.utils.hydra.compose_and_dump", fails)
    with pytest.raises(wanted, match=None if wanted is KeyboardInterrupt else "do not compose: ('who'|Hydra gives no reason)"):
        compose(root=project)
