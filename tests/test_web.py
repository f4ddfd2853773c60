"""The web page's logic without the page: answers, stops, comparisons, votes, the log, and how it is started."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import adaptprune
from adaptprune.engines.batch.engine import Engine
from adaptprune.engines.client import Client, ClientError, Cost
from adaptprune.errors import AdaptPruneError
from adaptprune.models.loading import TOY
from adaptprune.web import launch
from adaptprune.web.exchange import Controls, Conversation, takes_keep_ratio
from adaptprune.web.headers import Headers
from adaptprune.web.launch import serving
from adaptprune.web.log import FILE, ConversationLog
from adaptprune.web.talk import Desk
from tests.commands import run_here
from tests.webpage import CLOTH, COST, desk, finish, lines

HERE = Controls("pocket", "adaptprune", 0.1)


# -- a conversation ---------------------------------------------------------------------------------------------------


def test_a_conversation_and_its_votes_are_logged(tmp_path):
    log = ConversationLog(tmp_path)
    one = desk(["or", "ange", COST], ["heart", COST], log=log)
    talk, stop = Conversation(), threading.Event()
    states = [talk.last.state for _ in one.ask(talk, " What colour? ", [CLOTH], Controls("a"), stop)]
    assert states[0] == "waiting"
    assert states[-1] == "done"
    assert talk.last.answer == "orange"
    finish(one.ask(talk, "What shape?", [], Controls("a", "fastv", 0.5), stop))
    first, second = one._client.requests
    assert first.pruning is None
    assert first.want_overlay
    assert second.pruning == {"method": "fastv", "keep_ratio": 0.5}
    assert [turn["role"] for turn in second.messages] == ["user", "assistant", "user"]
    assert second.messages[0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert second.messages[1]["content"] == "orange"
    assert one.vote(talk, "upvote") == "Thank you, noted."
    assert one.vote(talk, "upvote") == one.vote(talk, "flag") == "Noted already."
    written = lines(tmp_path)
    assert [line["event"] for line in written] == ["answer", "answer", "upvote"]
    assert len({line["conversation"] for line in written}) == 1
    assert written[0]["question"] == "What colour?"
    assert written[0]["cost"]["visual_tokens_kept"] == 57
    (stored,) = (tmp_path / "images").iterdir()
    assert stored.stem == written[0]["images"][0]
    assert stored.read_bytes() == Path(CLOTH).read_bytes()


def test_a_failed_answer_leaves_the_conversation_as_it_was(tmp_path):
    one = desk(["fine", COST], ["half", ClientError("out of memory")], log=ConversationLog(tmp_path))
    talk, stop = Conversation(), threading.Event()
    finish(one.ask(talk, "a?", [], Controls("a"), stop))
    with pytest.raises(AdaptPruneError, match="out of memory"):
        finish(one.ask(talk, "b?", [], Controls("a"), stop))
    assert [each.question for each in talk.exchanges] == ["a?"]
    assert lines(tmp_path)[1]["error"] == "out of memory"
    with pytest.raises(AdaptPruneError, match="write a question"):
        finish(one.ask(talk, "  ", [CLOTH], Controls("a"), stop))
    with pytest.raises(AdaptPruneError, match="no model is chosen"):
        finish(one.ask(talk, "c?", [], Controls(None), stop))
    with pytest.raises(AdaptPruneError, match="no longer there"):
        finish(one.ask(talk, "c?", [str(tmp_path / "gone.png")], Controls("a"), stop))
    assert len(talk.exchanges) == 1


def test_regenerating(tmp_path):
    one = desk(["old", COST], ["new", COST], [ClientError("busy")], log=ConversationLog(tmp_path))
    talk, stop = Conversation(), threading.Event()
    with pytest.raises(AdaptPruneError, match="ask something first"):
        finish(one.regenerate(talk, Controls("a"), stop))
    finish(one.ask(talk, "a?", [], Controls("a"), stop))
    finish(one.regenerate(talk, Controls("b", "none"), stop))
    assert [(each.question, each.answer) for each in talk.exchanges] == [("a?", "new")]
    assert one._client.requests[1].pruning == {"method": "none"}
    with pytest.raises(AdaptPruneError, match="busy"):
        finish(one.regenerate(talk, Controls("a"), stop))
    assert talk.last.answer == "new"


def test_a_stop_does_not_wait_for_the_server():
    hold, stop, talk = threading.Event(), threading.Event(), Conversation()
    one = desk(["half", hold, "rest", COST])
    steps = one.ask(talk, "a?", [], Controls("a"), stop)
    while talk.last is None or talk.last.answer != "half":
        next(steps)
    stop.set()
    finish(steps)
    assert (talk.last.state, talk.last.answer) == ("stopped", "half")
    assert talk.last.remarks() == ["stopped"]
    hold.set()
    for _ in range(100):
        if one._client.closed:
            break
        threading.Event().wait(0.02)
    assert one._client.closed == 1  # the server hears of it


def test_methods_follow_the_model_and_strangers_get_no_pruning_by_default():
    one = desk(["x", COST], ["x", Cost(finish="length")])
    assert one.methods("a") == ["default", "adaptprune", "fastv", "none"]
    assert {"adaptprune", "pool"} < set(one.methods("b"))
    talk = Conversation()
    finish(one.ask(talk, "?", [CLOTH], Controls("b"), threading.Event()))
    assert "extra_body" not in one._client.requests[0].arguments()
    finish(one.ask(talk, "?", [CLOTH], Controls("b", "fastv:keep_ratio=0.2", 0.7), threading.Event()))
    assert one._client.requests[1].pruning == {"method": "fastv:keep_ratio=0.2"}
    assert talk.last.remarks() == ["pruning not reported by this server", "cut at max tokens"]
    assert talk.last.numbers() == []


def test_a_comparison(tmp_path):
    one = desk(["l", COST], [ClientError("right is down")], log=ConversationLog(tmp_path))
    both = None
    for both in one.compare("?", [CLOTH], Controls("a"), Controls("b", "none"), threading.Event()):  # noqa: B007
        pass
    assert (both.left.answer, both.left.state) == ("l", "done")
    assert (both.right.state, both.right.error) == ("failed", "right is down")
    for nothing in (both, None):  # one side has no answer
        with pytest.raises(AdaptPruneError, match="compare something first"):
            one.prefer(nothing, "tie")
    one._client.answers = [["l", COST], ["r", COST]]
    for both in one.compare("?", [CLOTH], Controls("a"), Controls("b", "none"), threading.Event()):  # noqa: B007
        pass
    assert one.prefer(both, "left") == "Thank you, noted."
    assert one.prefer(both, "right") == "Noted already."
    choices = [(line["event"], line.get("choice")) for line in lines(tmp_path)]
    assert choices == [("compare", None), ("compare", None), ("prefer", "left")]


def test_two_clicks_at_once_are_one_vote(tmp_path):
    one = desk(["x", COST], log=ConversationLog(tmp_path))
    talk = Conversation()
    finish(one.ask(talk, "?", [], Controls("a"), threading.Event()))
    clicks = [threading.Thread(target=one.vote, args=(talk, kind)) for kind in ("upvote", "downvote") * 8]
    for click in clicks:
        click.start()
    for click in clicks:
        click.join()
    assert len(lines(tmp_path)) == 2


# -- the log ----------------------------------------------------------------------------------------------------------


def test_the_log_rotates_and_bounds_its_images(tmp_path):
    log = ConversationLog(tmp_path, max_bytes=2000, files=3, max_image_bytes=os.path.getsize(CLOTH) + 10)
    other = tmp_path / "other.png"
    other.write_bytes(Path(CLOTH).read_bytes() + b"!")
    for number in range(100):
        assert log.write("answer", "c", [CLOTH, str(other)], number=number, text="%s % d {}")
    names = sorted(path.name for path in tmp_path.glob(f"{FILE}*"))
    assert names == [FILE, f"{FILE}.1", f"{FILE}.2"]
    assert all(path.stat().st_size <= 2000 for path in tmp_path.glob(f"{FILE}*"))
    newest = lines(tmp_path)[-1]
    assert newest["number"] == 99
    assert len(set(newest["images"])) == 2
    assert [path.stem for path in (tmp_path / "images").iterdir()] == newest["images"][:1]
    assert tmp_path.stat().st_mode & 0o077 == 0


@given(st.dictionaries(st.text(), st.text(), max_size=3))
def test_any_text_is_one_line(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("log")
    log = ConversationLog(folder)
    log.write("answer", "c", values=values)
    log.close()
    (line,) = (folder / FILE).read_bytes().splitlines(keepends=True)
    assert line.endswith(b"\n")
    assert json.loads(line)["values"] == values


def test_a_log_that_is_off_or_broken_stops_nothing(tmp_path):
    one = desk(["x", COST])
    talk = Conversation()
    finish(one.ask(talk, "?", [], Controls("a"), threading.Event()))
    with pytest.raises(AdaptPruneError, match="nothing was noted"):
        one.vote(talk, "upvote")
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(AdaptPruneError, match="leave out --log"):
        ConversationLog(blocked)
    log = ConversationLog(tmp_path / "log")
    log._handler.stream.close()
    assert not log.write("answer", "c")


# -- with a model, and from the command line --------------------------------------------------------------------------


def test_the_engine_in_this_process(tmp_path):
    engine = Engine("pocket", *adaptprune.load())
    with serving({"pocket": engine}) as client:
        with pytest.raises(ClientError, match="401"):
            Client(client.url, "somebody-else").models()
        one = Desk(client, ConversationLog(tmp_path))
        assert one.refresh() == ["pocket"]
        assert one.notices() == {"pocket": TOY}
        talk = Conversation()
        finish(one.ask(talk, "What colour is the triangle?", [CLOTH], HERE, threading.Event()))
        assert (talk.last.answer, talk.last.cost.visual_tokens_kept) == ("orange", 57)
        assert talk.last.cost.overlay.size == (672, 672)
        with pytest.raises(AdaptPruneError, match="layer=99"):
            finish(one.ask(talk, "?", [], Controls("pocket", "fastv:layer=99"), threading.Event()))
    assert not engine.alive


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--auth NAME:PASSWORD"),
        (["--auth", "me:short"], "8 or more characters"),
        (["--port", "70000"], "70000"),
        (["--no-log", "--log-folder", "x"], "leave out --log-folder"),
        (["--server", "nowhere"], "write an address"),
        (["--server", "http://127.0.0.1:9"], "cannot be reached"),
        (["--server", "http://127.0.0.1:9", "--model", "x"], "leave out --model"),
    ],
)
def test_wrong_options_end_in_one_line(arguments, message, monkeypatch, capsys):
    done = run_here(monkeypatch, capsys, "web", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_nothing_is_recorded_unless_asked_for(monkeypatch, capsys, tmp_path):
    folders = []

    @contextmanager
    def page(client, folder, **options):
        folders.append(folder)
        yield "http://127.0.0.1:1"

    monkeypatch.setattr(launch, "page", page)
    monkeypatch.setattr(launch, "wait", lambda say: (_ for _ in ()).throw(SystemExit(0)))
    monkeypatch.setattr(Client, "models", lambda self: [])
    for words in (
        [],
        ["--no-log"],
        ["--log"],
        ["--log-folder", str(tmp_path)],
        ["--log", "--log-folder", str(tmp_path)],
    ):
        said = run_here(monkeypatch, capsys, "web", "--server", "http://127.0.0.1:9", *words).stderr
        assert ("are recorded in" in said) == (folders[-1] is not None)
    assert folders[:2] == [None, None]
    assert folders[2].name == "conversations"
    assert folders[3:] == [tmp_path, tmp_path]


def test_the_keep_ratio_has_a_say_only_where_it_is_sent():
    for method, says in (("default", False), ("none", False), ("adaptprune", True), ("fastv:layer=3", True),
                         ("fastv:keep_ratio=0.2", False), ("fastv:layer=3,num_keep=4", False)):  # fmt: skip
        assert takes_keep_ratio(method) == says
        assert ("keep_ratio" in (Controls("a", method, 0.3).pruning() or {})) == says


def test_scripts_are_allowed_in_the_page_alone():
    """HTML that somebody managed to have served from another path has none of its scripts named."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": b"<scr", "more_body": True})
        await send({"type": "http.response.body", "body": b"ipt>1</script><script src=x></script>"})

    def asked(path: str, root: str = "") -> tuple[str, bytes]:
        sent = []

        async def send(message):
            sent.append(message)

        asyncio.run(Headers(app)({"type": "http", "path": path, "root_path": root}, None, send))
        assert [one["type"] for one in sent].count("http.response.start") == 1
        body = b"".join(one["body"] for one in sent if "body" in one)
        return dict(sent[0]["headers"])[b"content-security-policy"].decode(), body

    allowed = f" 'sha256-{base64.b64encode(hashlib.sha256(b'1').digest()).decode()}'"
    for path, root, found in (
        ("/", "", True),
        ("/sub/", "/sub", True),
        ("/gradio_api/file=x", "", False),
        ("/x/", "", False),
    ):
        policy, body = asked(path, root)
        assert (allowed in policy) == found
        assert policy.count("sha256") == int(found)
        assert body == b"<script>1</script><script src=x></script>"
