"""A picture of the server's page with an answer, for the gallery; needs Chromium and its driver.

depthdial serve & python benchmarks/screenshot.py docs/images/page.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from page import Page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--question", default="Why is the sky blue?")
    args = parser.parse_args()
    page = Page(args.url)
    try:
        page.ask(args.question)
        if not page.driver.save_screenshot(str(args.output)):
            raise SystemExit(f"{args.output} cannot be written")
    finally:
        page.driver.quit()


if __name__ == "__main__":
    main()
