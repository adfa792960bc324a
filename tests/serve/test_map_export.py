"""The map of a conversation over the API."""

from __future__ import annotations

import io

import httpx
import pyarrow.parquet

TALK = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "</script> jumps"}]


def kept(served, **fields) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/depth/map", json={"messages": TALK, **fields}, timeout=60)


def test_a_map_as_a_page_that_stands_alone(served):
    response = kept(served, format="html", title="A <title>")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/html")
    assert "attachment" in response.headers["content-disposition"]
    assert response.text.count("</script>") == response.text.count("<script")
    assert "A &lt;title&gt;" in response.text and "A <title>" not in response.text


def test_a_map_as_parquet_has_the_depths_of_the_budget(served):
    depths = {}
    for budget in (0.7, 1.0):
        table = pyarrow.parquet.read_table(io.BytesIO(kept(served, format="parquet", budget=budget).content))
        (depths[budget],) = table.column("layers_used").to_pylist()
    assert set(depths[1.0]) == {6} and set(depths[0.7]) != {6} and len(depths[0.7]) == len(depths[1.0])


def test_the_map_of_an_answer_has_its_prompt_read_as_asked(served):
    depths = {}
    for content in (None, 1.0, "same"):
        fields = {"format": "parquet", "budget": 0.7} | ({} if content is None else {"prompt_budget": content})
        table = pyarrow.parquet.read_table(io.BytesIO(kept(served, **fields).content))
        (ran,), (text,) = (table.column(name).to_pylist() for name in ("layers_used", "generated"))
        depths[content] = [depth for depth, own in zip(ran, text, strict=True) if not own]
        assert min(depth for depth, own in zip(ran, text, strict=True) if own) < 6
    assert depths[None] == depths[1.0] and set(depths[1.0]) == {6} != set(depths["same"])


def test_what_cannot_be_mapped_is_refused(served):
    for fields in (
        {"budget": 0.1},
        {"prompt_budget": 0.1},
        {"prompt_budget": "full"},
        {"format": "pdf"},
        {"messages": []},
        {"title": "x" * 999},
    ):
        response = kept(served, **fields)
        assert response.status_code == 400 and response.json()["error"]["message"]
