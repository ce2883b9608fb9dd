"""Pages become Markdown that reads well, in bounded time, whatever they are."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools._html import End, Start, Text, tokens
from tools._markdown import MAX_OUT, markdown

URL = "https://example.com/docs/page"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("<h1>A</h1><h3>B <em>c</em></h3>", "# A\n\n### B *c*"),
        ("<p>one<p>two<br>three", "one\n\ntwo\nthree"),
        ("a <b> bold </b>b<i></i><b> </b>c", "a **bold** b c"),
        ("<a href='x y'>t</a> <a href=/r>r</a> <a href=#f>f</a> <a href='javascript:x'>j</a> <a>n</a>",
         "[t](https://example.com/docs/x%20y) [r](https://example.com/r) f j n"),
        ("<ul><li>a<li>b<ol><li>c<li>d</ol><li>e</ul>", "- a\n- b\n  1. c\n  2. d\n- e"),
        ("<ol start=9><li><p>a</p><p>b</p></li></ol>after", "9. a\n\n   b\n\nafter"),
        ("<blockquote>a<p>b</blockquote>c", "> a\n>\n> b\n\nc"),
        ("<pre><code class=language-c>a  &lt;\n\n  b\n</code></pre>", "```c\na  <\n\n  b\n```"),
        ("<pre>```\nx\n```</pre>", "````\n```\nx\n```\n````"),
        ("<pre><div>a</div><div>b</div></pre>", "```\na\nb\n```"),
        ("use <code>a`b</code> and <kbd>x</kbd>", "use `` a`b `` and `x`"),
        ("<table><tr><th>a<th>b<tr><td>1|2<td><p>x</p><p>y</p></table>", "| a | b |\n| --- | --- |\n| 1\\|2 | x y |"),
        ("<table><tr><td>only</table>", "only"),
        ("<table><tr><td>l<td><table><tr><td>1<td>2</table><tr><td>end</table>z", "l\n\n| 1 | 2 |\n| --- | --- |\n\nend\n\nz"),
        ("<dl><dt>t<dd>d<dt>u<dd>e</dl>", "t\n\nd\n\nu\n\ne"),
        ("<img src=a.png alt='A picture'><img src=b.png>", "![A picture](https://example.com/docs/a.png)"),
        ("a<hr>b", "a\n\n---\n\nb"),
        ("<script>if (a</p>) {}</script><style>p{}</style><noscript>no</noscript><p>yes<svg><title>t</title></svg>", "yes"),
        ("<nav><a href=/>Home</a></nav><p>text", "text"),
        ("<nav><a href=/>Home</a></nav>", "[Home](https://example.com/)"),
        ("<header><nav><ul><li>x</header><p>text", "text"),
        ("<title>T</title><p>text", "# T\n\ntext"),
        ("<title>T</title><h1>H</h1>", "# H"),
        ("<p hidden>no</p><p>yes", "yes"),
        ("<!-- c --><!doctype html><?x?>a<!--> b<!-- open", "a b"),
        ("<![CDATA[x]]>", "x]]>"),
        ("5 < 6 &amp; 7 > 2 &copy; &#x41; &bogus;", "5 < 6 & 7 > 2 © A &bogus;"),
        ("</div></p>a</b> <b>c", "a **c**"),
        ("<a href=/1><h2>Card</h2><p>more</p></a>", "## [Card](https://example.com/1)\n\nmore"),
        ("<p>a<div>b</div>c</p>d", "a\n\nb\n\nc\n\nd"),
        ("<P CLASS=x>A</P><UL><LI>B</UL>", "A\n\n- B"),
        ("<a href=\"/q?a=1&amp;b=2\" title='>'>t</a>", "[t](https://example.com/q?a=1&b=2)"),
        ("<p unclosed='a>b<p>c", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_a_page_as_markdown(source: str, expected: str) -> None:
    assert markdown(source, URL) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("<h1>A</h1><p>b <b>c</b> <a href=/d>d</a> <code>e</code>", "A\n\nb c d e"),
        ("<ul><li>a<li>b</ul><pre>  x\n y</pre>", "- a\n- b\n\n  x\n y"),
        ("<table><tr><th>a<th>b<tr><td>1<td>2</table>", "a | b\n1 | 2"),
        ("<img src=a alt=A><hr><title>T</title>", "T\n\nA"),
    ],
)
def test_a_page_as_text(source: str, expected: str) -> None:
    assert markdown(source, URL, plain=True) == expected


def test_tags_are_taken_apart() -> None:
    found = list(tokens("<A HREF = 'x&amp;y' b c=d/e f=\"\" b=2>t</A ><br/></><x y=1"))
    attributes = {"href": "x&y", "b": "", "c": "d/e", "f": ""}
    assert found == [Start("a", attributes), Text("t"), End("a"), Start("br", {}), Start("x", {"y": "1"})]


WORDS = [
    *("<p>", "</p>", "<li>", "<ul>", "</ul>", "<table>", "<tr>", "<td>", "</table>", "<pre>", "</pre>", "<b>", "</b>", "<a href=/x>"),
    *("</a>", "<nav>", "</nav>", "<h2>", "</h2>", "<blockquote>", "</blockquote>", "<!--", "-->", "<script>", "</script>"),
    *("<", ">", '"', "text ", "\n"),
]


@given(st.lists(st.sampled_from(WORDS), max_size=40).map("".join) | st.text())
def test_no_page_fails(source: str) -> None:
    for plain in (False, True):
        assert markdown(source, URL, plain=plain) == markdown(source, URL, plain=plain).strip("\n")


@pytest.mark.parametrize(
    "piece",
    [
        *("<a href='", '<a b="', "<!--", "<![CDATA[", "<", "&", "</", "<ul><li>", "<div>", "<table><tr><td>", "<script>", "<p ", "<title>"),
        *(
            "<blockquote>" * 9 + "<pre>\n\n\n\n\n</pre>",
            "<b><i><s>",
            "<a href=/" + "y" * 1_990 + "><p>x</p><p>x</p>",
            "<x>" * 50 + "</y>" * 50,
        ),
    ],
)
def test_hostile_pages_take_bounded_time_and_room(piece: str) -> None:
    source = (piece * (1_000_000 // len(piece) + 1))[:1_000_000]
    began = time.process_time()
    result = markdown(source, URL)
    assert time.process_time() - began < 8  # seconds, where a square would take hours
    assert len(result) <= MAX_OUT + 10_000
