"""Colours and sizes of Gradio's own components, and our style sheet and script."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import gradio as gr

#: Fonts of the visitor's own system: the page loads nothing from elsewhere.
SYSTEM_FONTS = ["system-ui", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
#: Light and dark. Text has 4.5:1 against what is behind it.
COLOURS = {
    "body_background_fill": ("#f6f8fa", "#0d1117"),
    "body_text_color": ("#17202a", "#e8edf2"),
    "body_text_color_subdued": ("#4a5766", "#a9b6c4"),
    "background_fill_primary": ("#ffffff", "#161d26"),
    "background_fill_secondary": ("#eef2f5", "#1d2631"),
    "border_color_primary": ("#c9d2db", "#364250"),
    "block_background_fill": ("#ffffff", "#161d26"),
    "block_label_background_fill": ("#ffffff", "#161d26"),
    "block_label_text_color": ("#17202a", "#e8edf2"),
    "block_title_text_color": ("#17202a", "#e8edf2"),
    "block_info_text_color": ("#4a5766", "#a9b6c4"),
    "input_background_fill": ("#ffffff", "#0d1117"),
    "input_border_color": ("#7b8896", "#6b7988"),
    "input_placeholder_color": ("#5b6876", "#94a2b1"),
    "color_accent_soft": ("#d5efec", "#123b39"),
    "slider_color": ("#0f766e", "#2dd4bf"),
    "button_primary_background_fill": ("#0f766e", "#2dd4bf"),
    "button_primary_background_fill_hover": ("#115e59", "#5eead4"),
    "button_primary_text_color": ("#ffffff", "#06201d"),
    "button_secondary_background_fill": ("#ffffff", "#1d2631"),
    "button_secondary_background_fill_hover": ("#e6ecf1", "#2a3542"),
    "button_secondary_border_color": ("#7b8896", "#6b7988"),
    "button_secondary_text_color": ("#17202a", "#e8edf2"),
}


def theme() -> Any:
    """That of the page."""
    base = gr.themes.Base(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        font=SYSTEM_FONTS,
        font_mono=["ui-monospace", "monospace"],
        radius_size="lg",
    )
    dark = {f"{name}_dark": colour for name, (_, colour) in COLOURS.items()}
    light = {name: colour for name, (colour, _) in COLOURS.items()}
    return base.set(**light, **dark, block_title_text_weight="600", block_shadow="none", color_accent="#0f766e")


def css() -> str:
    """The page's own style sheet."""
    return files("adaptprune.web").joinpath("page.css").read_text(encoding="utf-8")


def script() -> str:
    """What the page does in the browser by itself, for each of its two parts."""
    return files("adaptprune.web").joinpath("page.js").read_text(encoding="utf-8")
