"""The chat: a conversation over its kept cache, its commands, its terminal, and the same over a server."""

from __future__ import annotations

import json
import os

import pytest
from PIL import Image

import adaptprune
from adaptprune.chat.session import Quit, Session, Settings
from adaptprune.chat.terminal import completer
from adaptprune.engines.client import Client, ClientError
from adaptprune.engines.local import LocalEngine
from adaptprune.engines.protocol import Pruning, never, quiet
from adaptprune.engines.remote import RemoteEngine
from adaptprune.engines.sampling import Sampling
from adaptprune.errors import AdaptPruneError
from adaptprune.images import open_image
from adaptprune.prompts import Turn
from adaptprune.serve.app import Settings as ServerSettings
from adaptprune.serve.guard import Keys
from tests.commands import run_here
from tests.serving import live, pocket_engine

KEY = "a-key-for-tests"


def turn(role, text, images=()):
    return Turn(role, [*images, text])


def how(method=None, keep_ratio=None, reselect=True, max_new_tokens=None) -> Settings:
    return Settings(Pruning(method, keep_ratio, reselect=reselect), Sampling(max_new_tokens, temperature=0.0))


def ask(engine, turns, settings, on_text=quiet, stopping=never):
    return engine.ask(turns, settings.sampling, settings.pruning, on_text=on_text, stopping=stopping)


@pytest.fixture(scope="module")
def pocket():
    return adaptprune.load()


@pytest.fixture
def local(pocket):
    backend = LocalEngine(*pocket)
    yield backend
    backend.close()


@pytest.fixture
def tiny(checkpoint):
    """A model whose answers run to their full length and depend on every token."""
    model, processor = adaptprune.load(checkpoint)
    model.generation_config.eos_token_id = None
    backend = LocalEngine(model, processor)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def server(pocket):
    with live(pocket_engine(), settings=ServerSettings(Keys([KEY]))) as running:
        yield running


def noise(seed: int) -> Image.Image:
    from tests.serving import picture

    return picture(seed)


# -- over a kept cache ------------------------------------------------------------------------------------------------


def test_a_second_question_does_not_read_the_first_turn_again(local):
    said = [turn("user", "What colour is the triangle?", (open_image("example:cloth"),))]
    first = ask(local, said, how(keep_ratio=0.1))
    assert (first.text, first.read_tokens) == ("orange", first.prompt_tokens)
    said += [turn("assistant", first.text), turn("user", "What shape is the pink object?")]
    widths = []
    hook = local.model.model.language_model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: widths.append((args[0] if args else kwargs["hidden_states"]).shape[1]),
        with_kwargs=True,
    )
    second = ask(local, said, how(keep_ratio=0.1))
    hook.remove()
    assert second.text == "heart"
    assert second.prompt_tokens > 576
    assert widths[0] == second.read_tokens < 20
    assert set(widths[1:]) == {1}


@pytest.mark.parametrize("method", ["adaptprune", "fastv:layer=1", "none"])
@pytest.mark.parametrize("again", [False, True], ids=["text", "image"])
def test_going_on_over_the_cache_answers_as_from_the_start(tiny, method, again):
    settings = how(method, None if method == "none" else 0.3, max_new_tokens=6)
    said = [turn("user", "what is this ?", (noise(1),))]
    streamed: list[str] = []
    said.append(turn("assistant", ask(tiny, said, settings, streamed.append, never).text))
    assert "".join(streamed).strip() == said[-1].text
    said.append(turn("user", "a b ?", (noise(2),) if again else ()))
    went_on = ask(tiny, said, settings)
    assert went_on.read_tokens < went_on.prompt_tokens
    tiny.reset()
    anew = ask(tiny, said, settings)
    assert anew.read_tokens == anew.prompt_tokens
    assert went_on.text == anew.text
    assert len(went_on.text.split()) > 3
    assert (went_on.visual_tokens, went_on.visual_tokens_kept) == (anew.visual_tokens, anew.visual_tokens_kept)
    if went_on.overlay is not None:
        assert went_on.overlay.tobytes() == anew.overlay.tobytes()


def test_reselect_off_keeps_what_the_first_question_chose(local):
    settings = how(keep_ratio=0.1, reselect=False)
    said = [turn("user", "What colour is the triangle?", (open_image("example:cloth"),))]
    said.append(turn("assistant", ask(local, said, settings).text))
    said.append(turn("user", "What shape is the pink object?"))
    reply = ask(local, said, settings)
    assert reply.read_tokens < 20
    assert reply.overlay is None
    assert reply.visual_tokens is None


def test_stopping_keeps_the_cache_usable(tiny):
    settings = how(keep_ratio=0.5, max_new_tokens=40)
    said = [turn("user", "what is this ?", (noise(1),))]
    pieces: list[str] = []
    stopped = ask(tiny, said, settings, pieces.append, lambda: len(pieces) > 3)
    assert stopped.stopped
    assert stopped.new_tokens < 40
    said += [turn("assistant", stopped.text), turn("user", "a ?")]
    went_on = ask(tiny, said, settings)
    assert went_on.read_tokens < went_on.prompt_tokens
    tiny.reset()
    assert ask(tiny, said, settings).text == went_on.text


def test_a_failure_leaves_the_backend_as_new(tiny, monkeypatch):
    said = [turn("user", "what ?", (noise(1),))]
    before = ask(tiny, said, how(max_new_tokens=4))

    def broken(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(tiny, [turn("user", "b ?", (noise(2),))], how(max_new_tokens=4), broken, never)
    assert ask(tiny, said, how(max_new_tokens=4)).text == before.text


def test_another_method_reads_anew_and_a_wrong_one_changes_nothing(local):
    said = [turn("user", "What colour is the triangle?", (open_image("example:cloth"),))]
    ask(local, said, how(keep_ratio=0.1))
    for wrong in (how("fastv:layer=99"), how("nonsense"), how(keep_ratio=2)):
        with pytest.raises(AdaptPruneError):
            local.check(wrong.pruning)
    more = [*said, turn("assistant", "orange"), turn("user", "What shape is the pink object?")]
    assert ask(local, more, how(keep_ratio=0.1)).text == "heart"
    changed = ask(local, more, how("fastv", 0.5))
    assert changed.read_tokens == changed.prompt_tokens
    assert changed.visual_tokens_kept == 288
    unpruned = ask(local, more, how("none"))
    assert unpruned.read_tokens == unpruned.prompt_tokens
    assert unpruned.visual_tokens is None


def test_a_full_context_is_said(tiny):
    limit = tiny.model.config.get_text_config().max_position_embeddings
    with pytest.raises(AdaptPruneError, match=f"model's context of {limit}. Shorten the conversation"):
        ask(tiny, [turn("user", "a " * (limit + 1))], how("none"))


# -- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def session(local):
    told: list[str] = []
    one = Session(local, how(keep_ratio=0.1), told.append)
    one.told = told
    return one


def enter(session, *lines):
    return [session.enter(line, quiet, never) for line in lines][-1]


def test_a_session(session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert enter(session, "", "  ", "/image example:cloth", "What colour is the triangle?").text == "orange"
    assert enter(session, "What shape is the pink object?").text == "heart"
    enter(session, "/overlay kept.png", "/overlay kept.png", "/overlay", '/save "my chat.json"')
    assert Image.open("kept.png").size == (672, 672)
    assert os.path.exists("overlay-2.png")
    saved = json.loads((tmp_path / "my chat.json").read_text())
    assert [turn["text"] for turn in saved["turns"][1::2]] == ["orange", "heart"]
    assert saved["turns"][0]["images"] == ["example:cloth"]
    assert saved["replies"][1]["visual_tokens_kept"] == 57
    enter(session, "/method fastv", "/prune 0.5")
    assert session.told[-1].startswith("method fastv, keep_ratio 0.5, reselect on; the conversation is read anew")
    assert enter(session, "What colour is the triangle?").visual_tokens_kept == 288
    enter(session, "/method none")
    assert session.settings.pruning.keep_ratio is None
    enter(session, "/prune 0.2")
    assert (session.settings.pruning.method, session.settings.pruning.keep_ratio) == ("adaptprune", 0.2)
    enter(session, "/reselect off", "/reset")
    assert session.turns == []
    enter(session, "/help")
    assert all(any(f"/{name}" in line for line in session.told) for name in Session.COMMANDS)
    with pytest.raises(Quit):
        enter(session, "/quit")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/imgae x.png", "Did you mean 'image'"),
        ("/image", "write /image PATH..."),
        ("/image nowhere.png", "there is no file 'nowhere.png'"),
        ('/image "a', "close the quotes"),
        ("/prune", "write /prune RATIO"),
        ("/prune much", "write /prune RATIO"),
        ("/prune 7", "keep_ratio=7"),
        ("/prune nan", "keep_ratio=nan"),
        ("/method", "write /method SPEC"),
        ("/method fastvv", "fastv"),
        ("/reselect maybe", "write /reselect on|off"),
        ("/overlay", "nothing was chosen for the last question"),
        ("/save", "write /save FILE.json"),
        ("/save chat.txt", "has to end in .json"),
        ("/save no/folder/chat.json", "there is no folder"),
        ("what is <image> ?", "placeholder"),
    ],
)
def test_mistakes_change_nothing(session, line, message):
    settings = session.settings
    with pytest.raises(AdaptPruneError) as caught:
        enter(session, line)
    assert message in str(caught.value)
    assert session.settings == settings
    assert session.turns == []


def test_an_existing_file_is_not_written_over(session, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text("precious")
    with pytest.raises(AdaptPruneError, match="exists already"):
        enter(session, f"/save {path}")
    assert path.read_text() == "precious"


def test_a_failed_question_keeps_its_images(session, monkeypatch):
    enter(session, "/image example:cloth")
    with monkeypatch.context() as patch:

        def broken(*args, **options):
            raise AdaptPruneError("the server is gone")

        patch.setattr(session.engine, "ask", broken)
        with pytest.raises(AdaptPruneError, match="gone"):
            enter(session, "What colour is the triangle?")
    assert session.turns == []
    assert enter(session, "What colour is the triangle?").text == "orange"


def test_what_tab_offers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").touch()
    (tmp_path / "photos").mkdir()

    def offers(text: str) -> list[str]:
        complete = completer(lambda: text)
        word = text.rpartition(" ")[2]
        found = []
        while (offer := complete(word, len(found))) is not None:
            found.append(offer)
        return found

    assert offers("/re") == ["/reselect ", "/reset "]
    assert offers("/image ph") == ["photo.png ", "photos/"]
    assert offers("/method fa") == ["fastv", "fastervlm"]
    assert offers("What") == []


# -- over a server ----------------------------------------------------------------------------------------------------


def test_the_same_over_a_server(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = Session(RemoteEngine(Client(server.url + "/v1", KEY)), how(), quiet)
    enter(session, "/image example:cloth")
    assert enter(session, "What colour is the triangle?").visual_tokens_kept == 144  # the server's own default
    enter(session, "/prune 0.1")
    reply = enter(session, "What shape is the pink object?")
    assert (reply.text, reply.visual_tokens_kept) == ("heart", 57)
    enter(session, "/overlay kept.png")
    assert Image.open("kept.png").size == (672, 672)
    with pytest.raises(AdaptPruneError, match="a server reads the whole conversation"):
        enter(session, "/reselect off")
    with pytest.raises(AdaptPruneError, match="the server has no method 'fastvv'"):
        enter(session, "/method fastvv")
    enter(session, "/method none")
    assert enter(session, "What colour is the triangle?").visual_tokens_kept == 576


def test_what_a_server_refuses_is_said_in_its_words(server):
    with pytest.raises(ClientError, match="401"):
        RemoteEngine(Client(server.url, "another-key"))
    with pytest.raises(AdaptPruneError, match="no model 'pockt'. Did you mean 'pocket'"):
        RemoteEngine(Client(server.url, KEY), "pockt")
    with pytest.raises(ClientError, match="cannot be reached .*is it running"):
        Client("http://127.0.0.1:9").models()
    with pytest.raises(AdaptPruneError, match="write an address"):
        Client("localhost:8000")
    session = Session(RemoteEngine(Client(server.url, KEY)), how(), quiet)
    with pytest.raises(ClientError, match=r"refused \(400\).*layer=99"):
        enter(session, "/method fastv:layer=99", "/image example:cloth", "What?")
    assert session.turns == []


# -- at the terminal --------------------------------------------------------------------------------------------------


def test_json_lines_over_a_server(server, monkeypatch, capsys):
    monkeypatch.setenv("ADAPTPRUNE_API_KEY", KEY)
    words = ("chat", "--server", server.url, "--image", "example:cloth", "--json")
    done = run_here(monkeypatch, capsys, *words, text="What colour is the triangle?\n/nonsense\n")
    answer, error = map(json.loads, done.stdout.splitlines())
    assert (answer["text"], answer["visual_tokens_kept"]) == ("orange", 144)
    assert error["error"].startswith("there is no command /nonsense")
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "nowhere.png"], "there is no file 'nowhere.png'"),
        (["--method", "none", "--keep-ratio", "0.1"], "leave out keep_ratio"),
        (["--temperature", "-1"], "temperature=-1"),
        (["--top-p", "0"], "top_p=0"),
        (["--server", "localhost"], "write an address"),
        (["--server", "http://127.0.0.1:9"], "cannot be reached"),
        (["--server", "http://127.0.0.1:9", "--load-4bit"], "--load-4bit loads a model here"),
    ],
)
def test_wrong_options_end_in_one_line(arguments, message, monkeypatch, capsys):
    done = run_here(monkeypatch, capsys, "chat", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
