"""The page's layout and which event does what. What is done is in `talk`, how it looks as values in `views`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported: nothing is sent anywhere

import gradio as gr

from adaptprune.errors import AdaptPruneError
from adaptprune.serve.asks import MAX_TEXT
from adaptprune.web import views
from adaptprune.web.exchange import Comparison, Controls, Conversation, takes_keep_ratio
from adaptprune.web.pictures import Pictures
from adaptprune.web.talk import MAX_TOKENS, Desk
from adaptprune.web.theme import script
from adaptprune.web.turns import PATIENCE, Turn, Turns

TITLE = "adaptprune"
#: Seconds between two looks at the server's list of models.
REFRESH = 30
#: Seconds after which a closed page's conversation is forgotten, and uploads are deleted.
FORGET = 3600
CHAT, COMPARE = "chat", "compare"
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


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
        self._turns = Turns()

    def build(self) -> gr.Blocks:
        """The page, not launched. It asks the server for its models, so that the list is there at first sight."""
        try:
            names, error = self._desk.refresh(), ""
        except AdaptPruneError as problem:
            names, error = [], str(problem)
        with gr.Blocks(
            title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(FORGET, 24 * FORGET)
        ) as page:
            gr.HTML(views.head(self._about, self._desk.log.on), elem_id="head")
            self.notice = gr.HTML(views.notices(self._desk.notices()), elem_id="notice")
            self.banner = gr.HTML(views.banner(error), elem_id="banner")
            self.listed = gr.State(names)
            with gr.Tab("Chat", id=CHAT):
                self._chat_tab(names)
            with gr.Tab("Compare", id=COMPARE):
                self._compare_tab(names)
            with gr.Accordion("Sampling", open=False):
                self._sampling()
            self._wire(page)
        return page

    # -- layout -------------------------------------------------------------------------------------------------------

    def _chat_tab(self, names: list[str]) -> None:
        with gr.Row(elem_id="desk"):
            with gr.Column(scale=3, min_width=280):
                self.chat = gr.HTML(elem_id="chat", js_on_load=script())
                self._pictures = Pictures(Path(self.chat.GRADIO_CACHE), self.chat.temp_files)
                self.chat.value = self._shown(None)
                self.entered = _question_box("question", "Send")
                with gr.Row(elem_classes="ap-buttons"):
                    self.stop = gr.Button("Stop", min_width=80, interactive=False)
                    self.clear = gr.Button("Clear", min_width=80, interactive=False)
                self.status = gr.HTML(views.note(""), elem_id="status")
            with gr.Column(scale=1, min_width=260, elem_id="settings"):
                self.controls = _controls("", self._desk, names)
                self.refresh = gr.Button("Refresh models")
                with gr.Accordion("Webcam", open=False):
                    self.webcam = gr.Image(sources=["webcam"], type="filepath", show_label=False, height=240)
        self.talk = gr.State(None, time_to_live=FORGET)
        self.lost = gr.State(None)  # a question that could not be answered

    def _compare_tab(self, names: list[str]) -> None:
        self.asked = _question_box("compare-question", "Compare")
        with gr.Row(elem_classes="ap-buttons"):
            self.stop_both = gr.Button("Stop", min_width=80, interactive=False)
        with gr.Row(elem_id="sides"):
            self.sides = []
            for name in ("Left", "Right"):
                with gr.Column(min_width=240):
                    self.sides.append(_controls(f"{name}: ", self._desk, names))
        self.answers = gr.HTML(self._compared(None), elem_id="answers", js_on_load=script())
        self.judged = gr.HTML(views.note(""), elem_id="judged")
        self.both = gr.State(None, time_to_live=FORGET)

    def _sampling(self) -> None:
        with gr.Row():
            self.temperature = gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0 is greedy", min_width=200)
            self.top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top p", info="with a temperature above 0",
                                   min_width=200, interactive=False)  # fmt: skip
            self.max_tokens = gr.Slider(1, MAX_TOKENS, min(512, MAX_TOKENS), step=1, label="Max tokens", min_width=200)

    def _shown(self, talk: Conversation | None) -> str:
        return views.conversation(talk or Conversation(), self._pictures, self._desk.log.on)

    def _compared(self, both: Comparison | None) -> str:
        return views.comparison(both, self._pictures, self._desk.log.on)

    # -- events -------------------------------------------------------------------------------------------------------

    def _wire(self, page: gr.Blocks) -> None:
        sampling = [self.temperature, self.top_p, self.max_tokens]
        every = [self.controls, *self.sides]
        lists, methods = [model for model, _, _ in every], [method for _, method, _ in every]
        refreshed = [self.listed, *lists, *methods, self.notice, self.banner]
        for event in (page.load, self.refresh.click, gr.Timer(REFRESH).tick):
            event(self._refresh, [self.listed, *lists], refreshed, **PRIVATE)
        for model, method, keep in every:
            model.input(self._offer, [model, method], [method], **PRIVATE)
            method.change(_has_a_say, [method], [keep], **PRIVATE)
        self.temperature.change(_chooses, [self.temperature], [self.top_p], **PRIVATE)

        answered = [self.talk, self.chat, self.entered, self.status, self.stop, self.clear, self.banner]
        given = [self.entered, self.talk, *self.controls, *sampling]
        # not "once": a question that comes too early is told so
        asking = self.entered.submit(self._ask, given, [*answered, self.lost], trigger_mode="multiple", **PRIVATE)
        asking.then(_give_back, [self.entered, self.lost], [self.entered, self.lost], **PRIVATE)
        self.chat.click(self._act, given, answered, trigger_mode="multiple", **PRIVATE)
        self.clear.click(self._clear, None, answered, **PRIVATE)
        for button, part in ((self.stop, CHAT), (self.stop_both, COMPARE)):
            button.click(self._stop(part), None, None, queue=False, **PRIVATE)
        self.webcam.input(_add_image, [self.webcam, self.entered], [self.webcam, self.entered], **PRIVATE)

        left, right = self.sides
        compared = [self.both, self.answers, self.asked, self.stop_both, self.judged, self.banner]
        wanted = [self.asked, self.both, *left, *right, *sampling]
        self.asked.submit(self._compare, wanted, compared, trigger_mode="multiple", **PRIVATE)
        self.answers.click(self._act_on_both, wanted, compared, trigger_mode="multiple", **PRIVATE)
        page.unload(self._leave)

    def _refresh(self, listed: list[str] | None, *chosen: str | None) -> list[Any]:
        try:
            names = self._desk.refresh()
        except AdaptPruneError as problem:
            return [None, *[gr.skip()] * (2 * len(chosen) + 1), views.banner(str(problem))]
        if names == listed and all(one in names for one in chosen):
            return [gr.skip()] * (2 * len(chosen) + 3)  # whoever has a list open keeps it so
        kept = [one if one in names else _first(names, place == 2) for place, one in enumerate(chosen)]
        models = [gr.Dropdown(choices=views.labelled(names), value=one) for one in kept]
        methods = [gr.Dropdown(choices=views.labelled(self._desk.methods(one))) for one in kept]
        return [names, *models, *methods, views.notices(self._desk.notices()), ""]

    def _offer(self, model: str | None, method: str) -> Any:
        return gr.Dropdown(choices=views.labelled(self._desk.methods(model)), value=method)

    def _stop(self, part: str) -> Callable[[gr.Request], None]:
        def handle(request: gr.Request) -> None:
            self._turns.stop((request.session_hash or "", part))

        return handle

    def _leave(self, request: gr.Request) -> None:
        for part in (CHAT, COMPARE):
            self._turns.drop((request.session_hash or "", part))

    # -- chat ---------------------------------------------------------------------------------------------------------

    def _ask(self, request: gr.Request, entered: Any, talk: Any, *values: Any) -> Iterator[dict[Any, Any]]:
        taken = False
        for shown in self._question(request, talk, values, *_entered(entered), taken=_empty()):
            yield shown
            taken = taken or shown.get(self.entered) == _empty()
        if taken and shown.get(self.banner):
            yield {self.lost: entered}

    def _act(
        self, request: gr.Request, event: gr.EventData, entered: Any, talk: Any, *values: Any
    ) -> Iterator[dict[Any, Any]]:
        """A button inside the conversation."""
        act = _act_of(event)
        if (example := _example(act)) is not None and not (talk and talk.exchanges):
            yield from self._question(request, talk, values, example["question"], [example["file"]], taken=gr.skip())
        elif act == "again":
            talk = talk or Conversation()
            yield from self._answer(
                request, talk, lambda turn: self._desk.regenerate(talk, Controls(*values), turn.stop), gr.skip()
            )
        elif act in views.VOTES:
            yield self._vote(talk or Conversation(), act)

    def _question(
        self, request: gr.Request, talk: Any, values: Any, text: str, images: list[str], *, taken: Any
    ) -> Iterator[dict[Any, Any]]:
        talk = talk or Conversation()
        controls = Controls(*values)
        yield from self._answer(
            request, talk, lambda turn: self._desk.ask(talk, text, images, controls, turn.stop), taken
        )

    def _answer(
        self, request: gr.Request, talk: Conversation, steps: Callable[[Turn], Iterator[None]], taken: Any
    ) -> Iterator[dict[Any, Any]]:
        """Show each step; `taken` is what the question's box gets once the question stands in the conversation."""
        place, error = (request.session_hash or "", CHAT), ""
        try:
            turn = self._turns.begin(place)
        except AdaptPruneError as problem:
            yield {self.banner: views.banner(str(problem))}
            return
        try:
            for _ in steps(turn):
                if not self._turns.shows(place, turn):
                    break
                yield {**self._state(talk, busy=True), self.entered: taken, self.banner: ""}
                taken = gr.skip()  # what is being typed meanwhile stays
        except AdaptPruneError as problem:
            error = str(problem)
        finally:
            shows = self._turns.shows(place, turn)
            self._turns.end(place, turn)  # before the last step: a page that shows an answer takes the next question
        yield {**self._state(talk), self.banner: views.banner(error)} if shows else {self.banner: gr.skip()}

    def _state(self, talk: Conversation, busy: bool = False) -> dict[Any, Any]:
        """The chat as it is."""
        return {
            self.talk: talk,
            self.chat: self._shown(talk),
            self.status: views.note(""),
            self.stop: gr.Button(interactive=busy),
            self.clear: gr.Button(interactive=bool(talk.exchanges)),
        }

    def _clear(self, request: gr.Request) -> Iterator[dict[Any, Any]]:
        place = (request.session_hash or "", CHAT)
        dropped = self._turns.drop(place)
        yield {**self._state(Conversation()), self.entered: _empty(), self.banner: ""}
        if dropped is not None:
            dropped.over.wait(PATIENCE)
            yield {**self._state(Conversation()), self.banner: ""}  # a step of it may have been on its way

    def _vote(self, talk: Conversation, kind: str) -> dict[Any, Any]:
        try:
            said = self._desk.vote(talk, kind)
        except AdaptPruneError as error:
            return {self.banner: views.banner(str(error))}
        return {self.chat: self._shown(talk), self.status: views.note(said), self.banner: ""}

    # -- compare ------------------------------------------------------------------------------------------------------

    def _compare(self, request: gr.Request, entered: Any, both: Any, *values: Any) -> Iterator[dict[Any, Any]]:
        yield from self._compare_both(request, *_entered(entered), values)

    def _act_on_both(
        self, request: gr.Request, event: gr.EventData, entered: Any, both: Any, *values: Any
    ) -> Iterator[dict[Any, Any]]:
        """A button below the answers."""
        act = _act_of(event)
        if (example := _example(act)) is not None and both is None:
            asked = {self.asked: {"text": example["question"], "files": [example["file"]]}}
            for step in self._compare_both(request, example["question"], [example["file"]], values):
                yield {**asked, **step}
                asked = {}
        elif act in views.CHOICES:
            try:
                said = self._desk.prefer(both, act)
            except AdaptPruneError as error:
                yield {self.banner: views.banner(str(error))}
                return
            yield {self.answers: self._compared(both), self.judged: views.note(said), self.banner: ""}

    def _compare_both(self, request: gr.Request, text: str, images: list[str], values: Any) -> Iterator[dict[Any, Any]]:
        left, right, sampling = values[:3], values[3:6], values[6:]
        place, both, error = (request.session_hash or "", COMPARE), None, ""
        try:
            turn = self._turns.begin(place)
        except AdaptPruneError as problem:
            yield {self.banner: views.banner(str(problem))}
            return
        try:
            sides = Controls(*left, *sampling), Controls(*right, *sampling)
            for both in self._desk.compare(text, images, *sides, turn.stop):
                running = {self.stop_both: gr.Button(interactive=True), self.banner: "", self.judged: views.note("")}
                yield {self.both: both, self.answers: self._compared(both), **running}
        except AdaptPruneError as problem:
            error = str(problem)
        finally:
            self._turns.end(place, turn)
        if both is not None:
            failed = {"Left": both.left.error, "Right": both.right.error}
            error = " ".join(f"{side}: {why}" for side, why in failed.items() if why)
        yield {self.stop_both: gr.Button(interactive=False), self.banner: views.banner(error)}


def _question_box(name: str, button: str) -> Any:
    return gr.MultimodalTextbox(
        file_types=["image"], file_count="multiple", sources=["upload"], label="Question", show_label=False,
        elem_id=name, max_lines=6, placeholder="Your question", autofocus=False,
        submit_btn=button, max_plain_text_length=MAX_TEXT,
    )  # fmt: skip


def _controls(side: str, desk: Desk, names: list[str]) -> tuple[Any, Any, Any]:
    """Model, method and keep ratio."""
    right = side.startswith("Right")
    chosen, method = _first(names, right), "none" if right else "adaptprune"
    model = gr.Dropdown(views.labelled(names), value=chosen, label=f"{side}Model", allow_custom_value=False)
    methods = gr.Dropdown(views.labelled(desk.methods(chosen)), value=method, label=f"{side}Method",
                          info="or a spec: fastv:layer=3", allow_custom_value=True)  # fmt: skip
    keep = gr.Slider(0.01, 1, 0.1 if side else 0.25, step=0.01, label=f"{side}Keep ratio",
                     info="of the picture's tokens", interactive=takes_keep_ratio(method))  # fmt: skip
    return model, methods, keep


def _first(names: list[str], second: bool) -> str | None:
    """What a list of models starts with; the right side with another model, if there is one."""
    return names[min(int(second), len(names) - 1)] if names else None


def _has_a_say(method: str | None) -> Any:
    return gr.Slider(interactive=takes_keep_ratio(method or ""))


def _chooses(temperature: float) -> Any:
    return gr.Slider(interactive=temperature > 0)


def _empty() -> dict[str, Any]:
    return {"text": "", "files": []}


def _entered(entered: Any) -> tuple[str, list[str]]:
    entered = entered or _empty()
    images = [one if isinstance(one, str) else one["path"] for one in entered.get("files") or []]
    return entered.get("text") or "", images


def _give_back(entered: Any, lost: Any) -> tuple[Any, None]:
    """A question that could not be answered goes back into its box, before what has been typed there meanwhile."""
    if lost is None:
        return gr.skip(), None
    (text, images), (typed, added) = _entered(lost), _entered(entered)
    both = "\n".join(filter(None, [text, typed]))
    return {"text": both, "files": list(dict.fromkeys([*images, *added]))}, None


def _add_image(image: str | None, entered: Any) -> tuple[None, dict[str, Any]]:
    """Move what the webcam saw to the question."""
    text, images = _entered(entered)
    return None, {"text": text, "files": [*images, *([image] if image else [])]}


def _act_of(event: gr.EventData) -> str:
    """Which button was pressed."""
    data = event._data if isinstance(event._data, dict) else {}
    return str(data.get("act"))


def _example(act: str) -> dict[str, str] | None:
    name, _, place = act.partition("-")
    known = views.list_examples()
    return known[int(place)] if name == "example" and place.isdecimal() and int(place) < len(known) else None
