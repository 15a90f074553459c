"""The tables of settings in docs/ are those of the configuration."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REFERENCE = runpy.run_path(str(ROOT / "scripts" / "config_reference.py"))


@pytest.mark.parametrize("page", REFERENCE["PAGES"])
def test_the_settings_are_up_to_date(page):
    text = (ROOT / "docs" / page).read_text("utf-8")
    assert text == REFERENCE["written"](page, text), "run scripts/config_reference.py"


def test_every_setting_has_its_row():
    text = (ROOT / "docs" / "training.md").read_text("utf-8")
    for name, model in REFERENCE["PAGES"]["training.md"].items():
        table = text.partition(f"**[{name}]**")[2].partition("**[")[0]
        missing = [f for f in model.model_fields if f"| `{f}` |" not in table]
        assert not missing, name
