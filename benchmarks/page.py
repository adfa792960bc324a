"""The server's page in a real browser: how soon the first token is seen, and what an accessibility checker finds.

    depthdial serve &
    python benchmarks/page.py benchmarks/results/DATE-MACHINE-page.json --axe node_modules/axe-core/axe.min.js

Needs Debian's chromium and chromium-driver. A question is asked as a person would, by key; seconds count from then to
the first frame that shows a token of the answer. Checks are axe-core's (npm), in light and dark, wide and on a phone,
with answers on the page.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from statistics import median
from typing import Any

import torch
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from depthdial.core.whole import write_json
from depthdial.evaluate.speed.machine import facts

QUESTIONS = ("What is 17 plus 25? Explain each step.", "Why is the sky blue?", "Tell me a story about a fox.")
CLOCK = """
window.firsts = [];
document.getElementById("question").addEventListener("keydown", event => {
  if (event.key !== "Enter") return;
  const began = performance.now(), had = document.querySelectorAll(".t").length;
  const seen = new MutationObserver(() => {
    const come = [...document.querySelectorAll(".t")].slice(had);
    if (!come.some(token => !token.hidden && token.textContent.trim())) return;
    seen.disconnect();
    requestAnimationFrame(() => setTimeout(() => window.firsts.push((performance.now() - began) / 1000)));
  });
  seen.observe(document.getElementById("talk"), {childList: true, subtree: true});
}, true);
"""


class Page:
    def __init__(self, url: str):
        options = webdriver.ChromeOptions()
        for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1100,800"):
            options.add_argument(word)
        options.binary_location = shutil.which("chromium") or ""
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        self.driver.set_script_timeout(120)
        self.driver.get(url)
        self.until(lambda: "layers" in self.driver.find_element(By.ID, "model").text)

    def until(self, true: Any) -> None:
        WebDriverWait(self.driver, 120, poll_frequency=0.05).until(lambda _: true())

    def ask(self, question: str) -> None:
        self.driver.find_element(By.ID, "question").send_keys(question, Keys.ENTER)
        self.until(lambda: self.driver.find_element(By.ID, "send").text == "Send")

    def firsts(self, repeats: int) -> list[float]:
        """Seconds to the first token of each question, in conversations of their own; the first one warms up."""
        self.driver.execute_script("document.getElementById('length').value = 24")
        self.ask(QUESTIONS[0])
        self.driver.execute_script(CLOCK)
        for i in range(repeats):
            self.driver.find_element(By.ID, "reset").click()
            self.ask(QUESTIONS[i % len(QUESTIONS)])
        return self.driver.execute_script("return window.firsts")

    def axe(self, script: str, scheme: str, width: int) -> dict[str, Any]:
        """What axe-core finds wrong, and how many of its rules hold."""
        emulate = self.driver.execute_cdp_cmd
        emulate("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        emulate("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_script(script)
        found = self.driver.execute_async_script("axe.run().then(arguments[0])")
        wrong, unsure = (
            [{"rule": rule["id"], "where": [node["target"][0] for node in rule["nodes"]]} for rule in found[kind]]
            for kind in ("violations", "incomplete")
        )
        return {"scheme": scheme, "width": width, "rules held": len(found["passes"]), "wrong": wrong, "unsure": unsure}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--axe", type=Path, help="axe-core's axe.min.js")
    args = parser.parse_args()
    page = Page(args.url)
    try:
        firsts = page.firsts(args.repeats)
        script = None if args.axe is None else args.axe.read_text()
        page.driver.find_element(By.ID, "compare").click()
        page.ask(QUESTIONS[1])
        checks = [page.axe(script, scheme, w) for scheme in ("light", "dark") for w in (1100, 360)] if script else []
        browser = page.driver.capabilities["browserVersion"]
    finally:
        page.driver.quit()
    told = {"median": round(median(firsts), 3), "worst": round(max(firsts), 3), "each": [round(s, 3) for s in firsts]}
    result = {"what": "the server's page", **facts(torch.device("cpu")), "chromium": browser}
    write_json(args.output, {**result, "seconds to the first token seen": told, "axe-core": checks})
    print(f"first token seen after {told['median']} s (median of {len(firsts)}), {told['worst']} s at worst")
    for check in checks:
        print(check)


if __name__ == "__main__":
    main()
