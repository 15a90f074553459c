"""The page of an explanation, read as a browser does."""

import dataclasses
import html.parser

from tfrec_attn import explanation_page
from tfrec_attn.explanation import Part


class Read(html.parser.HTMLParser):
    """The tags of a page with their attributes, and the texts in each kind of tag."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.open, self.text = [], {}, [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open += [] if tag == "meta" else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


def test_the_page_marks_words_and_events(made):
    read = Read(explanation_page.page(made))
    assert read.open == []
    assert read.texts["mark"] == ["The", "Hobbit"]
    assert made.item_text in read.text
    marks = [attrs for tag, attrs in read.tags if tag == "mark"]
    # 4 and 5 ninths; the largest of the item's parts has 7.
    assert [mark["title"] for mark in marks] == ["+0.4444", "+0.5556"]
    assert marks[0]["style"] == f"background: rgba({explanation_page.UP}, 0.429)"
    assert marks[1]["style"] == f"background: rgba({explanation_page.UP}, 0.536)"
    lower = [attrs for tag, attrs in read.tags if attrs.get("title") == "-2.0000"]
    assert lower == [
        {
            "style": f"background: rgba({explanation_page.DOWN}, 0.300)",  # 0.75 * 2 / 5
            "title": "-2.0000",
        }
    ]
    cells = [attrs["title"] for tag, attrs in read.tags if tag == "td" and "title" in attrs]
    heat = [f"{weight:+.4f}" for row in made.attention for weight in row]
    assert cells[-len(heat) :] == heat
    assert "Score 9.0000 = retrieval 4.0000 + attention-weighted cosine 5.0000. " in (
        "".join(read.texts["p"])
    )


def test_nothing_on_the_page_is_read_as_a_tag_or_fetched(made):
    nasty = '<script src="http://x/">&amp;</script>'
    part = Part("word", nasty, nasty, 1.0, (0, len(nasty)))
    chip, event = Part("column", nasty, nasty, 1.0), Part("event", nasty, nasty, 1.0)
    read = Read(
        explanation_page.page(
            dataclasses.replace(
                made,
                user=nasty,
                item_text=nasty,
                item_parts=(part, chip),
                user_parts=(event,),
                attention=((0.5, 0.5),),
                unknown_history=(nasty,),
            )
        )
    )
    used = {tag for tag, _ in read.tags}
    assert not used & {"script", "link", "img", "iframe"}
    assert not [attrs for _, attrs in read.tags if {"src", "href"} & set(attrs)]
    assert read.texts["mark"] == [nasty]
    assert nasty in read.texts["title"][0]
    assert "url(" not in explanation_page.STYLE
