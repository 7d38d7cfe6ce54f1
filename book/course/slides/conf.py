"""Slides by sphinx-revealjs; `make course` builds them, with the figures of a run beside this file."""

extensions = ["myst_parser", "sphinx_revealjs"]
html_copy_source = False
revealjs_style_theme = "white"
revealjs_static_path = ["static"]
revealjs_css_files = ["slides.css"]
revealjs_script_plugins = [{"name": "RevealNotes", "src": "revealjs/plugin/notes/notes.js"}]
