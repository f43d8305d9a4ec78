"""Makes the README's links absolute, as they are shown elsewhere; all else is in setup.cfg."""

import configparser
import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent


def repository() -> str:
    """Returns the address of the repository, which only setup.cfg states."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return re.search("^Source = (.*)$", config["metadata"]["project_urls"], re.MULTILINE)[1]


def release() -> str:
    """Returns the tag of this version."""
    text = (ROOT / "zoneout_jax/__init__.py").read_text()
    return "v" + re.search('^__version__ = "(.*)"$', text, re.MULTILINE)[1]


def readme() -> str:
    """Returns the README with addresses in place of paths."""

    def address(link: re.Match[str]) -> str:
        start, path = link.groups()
        is_picture = path.endswith(".png")
        kind = "raw" if is_picture else "tree" if (ROOT / path).is_dir() else "blob"
        return f"{start}{repository()}/{kind}/{release()}/{path}"

    text = (ROOT / "README.md").read_text()
    return re.sub(r'(!?\[[^\]]*\]\(|src=")(?!https?:|#)([^)"\s]+)', address, text)


if __name__ == "__main__":
    setuptools.setup(
        long_description=readme(), long_description_content_type="text/markdown; charset=UTF-8"
    )
