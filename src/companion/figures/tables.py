"""Tables that say what data they are from, as figures do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from IPython.display import HTML


def captioned(table: pd.DataFrame, caption: str, digits: int = 3) -> HTML:
    """A table with a caption above it, numbers with `digits` decimals and nothing where a value is undefined.

    Equal tables give equal text: neither identifiers drawn at random nor addresses in memory are in it.
    """
    from IPython.display import HTML

    styled = table.style.format(precision=digits, na_rep="", escape="html")
    for axis in (0, 1):
        styled = styled.format_index(escape="html", axis=axis)
    text = caption.replace("&", "&amp;").replace("<", "&lt;")
    html = styled.to_html(caption=text, exclude_styles=True)
    return HTML(html.replace("<table>", '<table class="dataframe">', 1))
