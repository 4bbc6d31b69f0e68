"""docs/settings.md is what `make settings` writes now."""

from config import Config
from tools.settings import PAGE, settings_page


def test_the_page_of_settings_is_up_to_date() -> None:
    page = PAGE.read_text("utf-8")
    assert page == settings_page(), "run: make settings"
    assert [name for name in Config.model_fields if page.count(f"| `{name}` |") != 1] == []
