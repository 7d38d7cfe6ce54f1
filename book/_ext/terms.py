"""Sphinx extension: the first mention of a glossary term on a page links to it and says on hover what it means."""

from __future__ import annotations

import re

from docutils import nodes

GLOSSARY = "glossary"
NOT_IN = (nodes.literal, nodes.reference, nodes.title, nodes.math, nodes.raw, nodes.caption, nodes.Inline)


def known(app) -> dict[str, tuple[str, str]]:
    """Lower-case term -> its id on the glossary's page, and the first sentence of what it means."""
    if GLOSSARY not in app.env.found_docs:
        return {}
    found = {}
    for item in app.env.get_doctree(GLOSSARY).findall(nodes.definition_list_item):
        meaning = " ".join(item.next_node(nodes.definition).next_node(nodes.paragraph).astext().split())
        for term in item.findall(nodes.term):
            for name in term.astext().split(", "):
                found[name.lower()] = (term["ids"][0], re.split(r"(?<=\.) ", meaning)[0])
    return found


def link(app, doctree, docname: str) -> None:
    """Link first mentions in paragraphs and lists of a page; text that is already marked up stays as it is."""
    if app.builder.name != "html" or docname in (GLOSSARY, "notation", "references") or not (terms := known(app)):
        return
    names = "|".join(re.escape(name) for name in sorted(terms, key=len, reverse=True))
    # Not where the word means another thing (a confidence interval, fresh noise), nor in names of files.
    other = r"(?! interval|\.\w| labelled| noise| micrograph| of hardening)"
    search = re.compile(rf"(?<![\w+⟨/-])({names}){other}(?=s?(?![\w+⟩/-]))", re.IGNORECASE)
    for text in list(doctree.findall(nodes.Text)):
        inside, node = False, text.parent
        while node is not None and not inside:
            inside, node = isinstance(node, NOT_IN), node.parent
        if inside or not isinstance(text.parent, nodes.paragraph):
            continue
        parts, end = [], 0
        for match in search.finditer(text):
            target, meaning = terms.pop(match[1].lower(), (None, None))
            if target:
                uri = f"{app.builder.get_relative_uri(docname, GLOSSARY)}#{target}"
                look = {"internal": True, "reftitle": meaning, "classes": ["term-link"]}
                parts += [nodes.Text(text[end : match.start()]), nodes.reference("", match[1], refuri=uri, **look)]
                end = match.end()
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(text[end:])])


def setup(app) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("doctree-resolved", link)
    return {"parallel_read_safe": True}
