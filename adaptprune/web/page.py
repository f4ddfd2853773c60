"""The page's layout and which event does what. What is done is in `talk`, how it looks as values in `views`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported: nothing is sent anywhere

import gradio as gr

from adaptprune.errors import AdaptPruneError
from adaptprune.web import views
from adaptprune.web.talk import Comparison, Controls, Conversation, Desk

TITLE = "adaptprune"
#: Seconds between two looks at the server's list of models.
REFRESH = 30
#: Seconds after which a closed page's conversation is forgotten, and uploads are deleted.
FORGET = 3600
VOTES = {"upvote": "▲ Good", "downvote": "▼ Bad", "flag": "⚑ Flag"}
CHOICES = {"left": "Left is better", "right": "Right is better", "tie": "Tie", "neither": "Both are bad"}
IMAGE_BUTTONS: Any = ["download", "fullscreen"]
SYSTEM_FONTS = ["system-ui", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]


def theme() -> Any:
    """Fonts of the visitor's own system: the page loads nothing from elsewhere."""
    return gr.themes.Soft(
        primary_hue="teal", secondary_hue="teal", font=SYSTEM_FONTS, font_mono=["ui-monospace", "monospace"]
    )


def css() -> str:
    """The page's own style sheet."""
    return files("adaptprune.web").joinpath("page.css").read_text(encoding="utf-8")


class Page:
    """Builds the page.

    Parameters
    ----------
    desk : Desk
    about : str
        One line under the title.
    """

    def __init__(self, desk: Desk, about: str = "") -> None:
        self._desk = desk
        self._about = about
        self._stops: dict[str, threading.Event] = {}  # by visitor

    def build(self) -> gr.Blocks:
        """The page, not launched."""
        with gr.Blocks(
            title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(FORGET, 24 * FORGET)
        ) as page:
            gr.Markdown(f"# {TITLE}\n{self._about}{self._notice()}", elem_id="head")
            self.banner = gr.HTML("", elem_id="banner")
            with gr.Tab("Chat", id="chat"):
                self._chat_tab()
            with gr.Tab("Compare", id="compare"):
                self._compare_tab()
            with gr.Accordion("Sampling", open=False):
                self._sampling()
            self._wire(page)
        return page

    def _notice(self) -> str:
        return "  \n*Conversations, with their images, are recorded on this server.*" if self._desk.log.on else ""

    # -- layout -------------------------------------------------------------------------------------------------------

    def _chat_tab(self) -> None:
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                self.chat = gr.Chatbot(label="Conversation", height=440, elem_id="chat", feedback_options=None,
                                       buttons=["copy"], placeholder="Add an image, ask a question.")  # fmt: skip
                self.entered = _question_box("question")
                with gr.Row(elem_classes="buttons"):
                    self.regenerate = gr.Button("↻ Regenerate", size="sm", min_width=90)
                    self.stop = gr.Button("■ Stop", size="sm", min_width=90, variant="stop", interactive=False)
                    self.clear = gr.Button("✕ Clear", size="sm", min_width=90)
                with gr.Row(elem_classes="buttons", visible=self._desk.log.on):
                    self.votes = {kind: gr.Button(name, size="sm", min_width=90) for kind, name in VOTES.items()}
                self.status = gr.HTML(views.note(""), elem_id="status")
            with gr.Column(scale=2, min_width=320):
                self.overlays = gr.Gallery(label="What was kept, per question", format="png", columns=1, preview=True,
                                           object_fit="contain", height=440, interactive=False, buttons=IMAGE_BUTTONS,
                                           elem_id="overlays")  # fmt: skip
                self.controls = _controls("")
                self.refresh = gr.Button("↻ Refresh models", size="sm")
        with gr.Accordion("Webcam", open=False):
            self.webcam = gr.Image(sources=["webcam"], type="filepath", show_label=False, height=300)
        gr.Examples(views.examples(), [self.entered], label="Examples")
        self.talk = gr.State(None, time_to_live=FORGET)

    def _compare_tab(self) -> None:
        gr.Markdown("One question to two models, or to one model pruned in two ways. The left side is asked first.")
        self.asked = _question_box("compare-question")
        with gr.Row(elem_classes="buttons"):
            self.stop_both = gr.Button("■ Stop", size="sm", min_width=90, variant="stop", interactive=False)
        self.sides: list[tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]] = []
        with gr.Row():
            for name in ("Left", "Right"):
                with gr.Column(min_width=280, elem_classes="side"):
                    controls = _controls(f"{name}: ")
                    text = gr.Markdown(
                        "", label=f"{name} answer", container=True, min_height=60, elem_id=f"{name.lower()}-answer"
                    )
                    line = gr.HTML(views.note(""), elem_id=f"{name.lower()}-cost")
                    kept = gr.Image(label=f"{name}: what was kept", format="png", interactive=False, height=340,
                                    buttons=IMAGE_BUTTONS,
                                    elem_id=f"{name.lower()}-overlay")  # fmt: skip
                    self.sides.append((controls, (text, line, kept)))
        with gr.Row(elem_classes="buttons", visible=self._desk.log.on):
            self.choices = {kind: gr.Button(name, size="sm", min_width=120) for kind, name in CHOICES.items()}
        self.judged = gr.HTML(views.note(""), elem_id="judged")
        gr.Examples(views.examples(), [self.asked], label="Examples")
        self.both = gr.State(None, time_to_live=FORGET)

    def _sampling(self) -> None:
        with gr.Row():
            self.temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0 is greedy", min_width=200)
            self.top_p = gr.Slider(
                0.05, 1, 1, step=0.05, label="Top p", info="with a temperature above 0", min_width=200
            )
            self.max_tokens = gr.Slider(1, 2048, 512, step=1, label="Max tokens", min_width=200)

    # -- events -------------------------------------------------------------------------------------------------------

    def _wire(self, page: gr.Blocks) -> None:
        sampling = [self.temperature, self.top_p, self.max_tokens]
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        lists = [model for (model, _, _), *_ in [(self.controls,), *self.sides]]
        methods = [method for (_, method, _), *_ in [(self.controls,), *self.sides]]
        refreshed = [*lists, *methods, self.banner]
        page.load(self._refresh, lists, refreshed, **private)
        self.refresh.click(self._refresh, lists, refreshed, **private)
        gr.Timer(REFRESH).tick(self._refresh, lists, refreshed, **private)
        for model, method in zip(lists, methods, strict=True):
            model.input(self._offer, [model, method], [method], **private)

        answered = [self.talk, self.chat, self.entered, self.status, self.overlays, self.stop, self.banner]
        given = [self.talk, *self.controls, *sampling]
        self.entered.submit(self._ask, [self.entered, *given], answered, **private)
        self.regenerate.click(self._again, [self.entered, *given], answered, **private)
        for cleared in (self.clear.click, self.chat.clear):
            cleared(self._clear, None, answered, **private)
        for button in (self.stop, self.stop_both):
            button.click(self._stop, None, None, queue=False, **private)
        self.webcam.input(_add_image, [self.webcam, self.entered], [self.webcam, self.entered], **private)
        for kind, button in self.votes.items():
            button.click(self._vote(kind), [self.talk], [self.status, self.banner], **private)

        (left, left_shown), (right, right_shown) = self.sides
        shown = [self.both, *left_shown, *right_shown, self.asked, self.stop_both, self.judged, self.banner]
        self.asked.submit(self._compare, [self.asked, *left, *right, *sampling], shown, **private)
        for kind, button in self.choices.items():
            button.click(self._prefer(kind), [self.both], [self.judged, self.banner], **private)
        page.unload(self._leave)

    def _refresh(self, *chosen: str | None) -> list[Any]:
        try:
            names, error = self._desk.refresh(), ""
        except AdaptPruneError as problem:
            return [gr.skip()] * (2 * len(chosen)) + [views.banner(str(problem))]
        # the second side starts with another model, if there is one
        first = [names[min(place, len(names) - 1) if place == 2 else 0] for place in range(len(chosen))]
        kept = [one if one in names else new for one, new in zip(chosen, first, strict=True)]
        models = [gr.Dropdown(choices=names, value=one) for one in kept]
        return [*models, *(gr.Dropdown(choices=self._desk.methods(one)) for one in kept), views.banner(error)]

    def _offer(self, model: str | None, method: str) -> Any:
        return gr.Dropdown(choices=self._desk.methods(model), value=method)

    def _start(self, request: gr.Request) -> threading.Event:
        self._stops[request.session_hash or ""] = stop = threading.Event()
        return stop

    def _stop(self, request: gr.Request) -> None:
        if (stop := self._stops.get(request.session_hash or "")) is not None:
            stop.set()

    def _leave(self, request: gr.Request) -> None:
        self._stop(request)
        self._stops.pop(request.session_hash or "", None)

    def _ask(
        self, request: gr.Request, entered: Any, talk: Conversation | None, *values: Any
    ) -> Iterator[dict[Any, Any]]:
        text, images = _entered(entered)
        talk = talk or Conversation()
        steps = self._desk.ask(talk, text, images, Controls(*values), self._start(request))
        yield from self._answer(steps, talk, entered, _empty())

    def _again(
        self, request: gr.Request, entered: Any, talk: Conversation | None, *values: Any
    ) -> Iterator[dict[Any, Any]]:
        talk = talk or Conversation()
        steps = self._desk.regenerate(talk, Controls(*values), self._start(request))
        yield from self._answer(steps, talk, entered, gr.skip())

    def _answer(self, steps: Iterator[None], talk: Conversation, entered: Any, taken: Any) -> Iterator[dict[Any, Any]]:
        error = ""
        try:
            for _ in steps:
                yield {
                    self.talk: talk,
                    self.chat: views.messages(talk),
                    self.entered: taken,
                    self.status: views.note(views.status(talk)),
                    self.stop: gr.Button(interactive=True),
                    self.banner: "",
                }
                taken = gr.skip()  # what is being typed meanwhile stays
        except AdaptPruneError as problem:
            error, taken = str(problem), entered  # nothing that was entered is lost
        yield {
            self.talk: talk,
            self.chat: views.messages(talk),
            self.entered: taken,
            self.status: views.note(views.status(talk)),
            self.overlays: _gallery(talk),
            self.stop: gr.Button(interactive=False),
            self.banner: views.banner(error),
        }

    def _clear(self, request: gr.Request) -> dict[Any, Any]:
        self._stop(request)
        talk = Conversation()
        return {
            self.talk: talk, self.chat: [], self.entered: _empty(), self.status: views.note(""),
            self.overlays: _gallery(talk), self.stop: gr.Button(interactive=False), self.banner: "",
        }  # fmt: skip

    def _vote(self, kind: str) -> Callable[[Conversation | None], tuple[str, str]]:
        return _told(lambda talk: self._desk.vote(talk or Conversation(), kind))

    def _prefer(self, kind: str) -> Callable[[Comparison | None], tuple[str, str]]:
        return _told(lambda both: self._desk.prefer(both, kind))

    def _compare(self, request: gr.Request, entered: Any, *values: Any) -> Iterator[dict[Any, Any]]:
        text, images = _entered(entered)
        left, right, sampling = values[:3], values[3:6], values[6:]
        both, error = None, ""
        steps = self._desk.compare(
            text, images, Controls(*left, *sampling), Controls(*right, *sampling), self._start(request)
        )
        try:
            for both in steps:
                running = {self.stop_both: gr.Button(interactive=True), self.banner: "", self.judged: views.note("")}
                yield {self.both: both, **self._sides(both), **running}
        except AdaptPruneError as problem:
            error = str(problem)
        if both is not None:
            failed = {"Left": both.left.error, "Right": both.right.error}
            error = " ".join(f"{side}: {why}" for side, why in failed.items() if why)
        yield {self.stop_both: gr.Button(interactive=False), self.banner: views.banner(error)}

    def _sides(self, both: Comparison) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        for one, (_, (text, line, kept)) in zip((both.left, both.right), self.sides, strict=True):
            values |= {text: views.answer(one) if one.state != "failed" else "", line: views.note(one.line())}
            values[kept] = one.cost.overlay if one.state in ("waiting", "done", "stopped", "failed") else gr.skip()
        return values


def _question_box(name: str) -> Any:
    return gr.MultimodalTextbox(
        file_types=["image"], file_count="multiple", sources=["upload"], label="Question", elem_id=name, max_lines=8,
        placeholder="Ask; paste, drop or attach images", autofocus=False, max_plain_text_length=100_000,
    )  # fmt: skip


def _controls(side: str) -> tuple[Any, Any, Any]:
    """Model, method and keep ratio."""
    right = side.startswith("Right")
    with gr.Row():
        model = gr.Dropdown([], label=f"{side}Model", min_width=140, allow_custom_value=False)
        method = gr.Dropdown(["adaptprune", "none"], value="none" if right else "adaptprune", label=f"{side}Method",
                             info="or a spec: fastv:layer=3", min_width=140, allow_custom_value=True)  # fmt: skip
    keep = gr.Slider(0.01, 1, 0.1 if side else 0.25, step=0.01, label=f"{side}Keep ratio", info="of the visual tokens")
    return model, method, keep


def _empty() -> dict[str, Any]:
    return {"text": "", "files": []}


def _entered(entered: Any) -> tuple[str, list[str]]:
    entered = entered or _empty()
    images = [one if isinstance(one, str) else one["path"] for one in entered.get("files") or []]
    return entered.get("text") or "", images


def _add_image(image: str | None, entered: Any) -> tuple[None, dict[str, Any]]:
    """Move what the webcam saw to the question."""
    text, images = _entered(entered)
    return None, {"text": text, "files": [*images, *([image] if image else [])]}


def _gallery(talk: Conversation) -> Any:
    pictures = views.overlays(talk)
    return gr.Gallery(pictures, selected_index=len(pictures) - 1 if pictures else None)


def _told(act: Callable[[Any], str]) -> Callable[[Any], tuple[str, str]]:
    """An event that tells the visitor something, or what is wrong."""

    def handle(value: Any) -> tuple[str, str]:
        try:
            return views.note(act(value)), ""
        except AdaptPruneError as error:
            return gr.skip(), views.banner(str(error))

    return handle
