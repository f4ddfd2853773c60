"""What happens when a server is full, late, left by a client, or told to stop."""

from __future__ import annotations

import threading
import time

import httpx
import openai
import pytest

from tests.serving import data_url, live, picture, tiny, user


def test_a_full_queue_answers_429_and_the_client_comes_back(checkpoint):
    with live(tiny(checkpoint, max_batch=1, max_queue=1)) as server:
        client = server.client()
        streams = [
            client.chat.completions.create(model="tiny", messages=user("a"), max_tokens=400, stream=True)
            for _ in range(1)
        ]
        next(iter(streams[0]))
        waiting = threading.Thread(
            target=lambda: client.chat.completions.create(model="tiny", messages=user("a"), max_tokens=1)
        )
        waiting.start()
        while server.engines["tiny"].pending < 2:
            time.sleep(0.001)
        with pytest.raises(openai.RateLimitError) as full:
            client.chat.completions.create(model="tiny", messages=user("a"), max_tokens=1)
        assert full.value.body["code"] == "queue_full"
        assert int(full.value.response.headers["retry-after"]) >= 1
        streams[0].close()  # makes room
        waiting.join()
        assert server.client(max_retries=2).chat.completions.create(model="tiny", messages=user("a"), max_tokens=1)


def test_deadlines(checkpoint):
    with live(tiny(checkpoint)) as server:
        client = server.client()
        with pytest.raises(openai.InternalServerError) as late:
            client.chat.completions.create(
                model="tiny", messages=user("a"), max_tokens=450, extra_body={"timeout": 0.1}
            )
        assert (late.value.status_code, late.value.body["code"]) == (504, "deadline_exceeded")
        chunks = client.chat.completions.create(
            model="tiny", messages=user("a"), max_tokens=450, stream=True, extra_body={"timeout": 0.1}
        )
        with pytest.raises(openai.APIError, match="not finished within its time"):
            list(chunks)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_answer(checkpoint, stream):
    with live(tiny(checkpoint)) as server:
        body = {"model": "tiny", "messages": user("a", data_url(picture(1))), "max_tokens": 470, "stream": stream}
        with httpx.Client(timeout=5) as client:
            request = client.build_request("POST", f"{server.url}/v1/chat/completions", json=body)
            if stream:
                answer = client.send(request, stream=True)
                next(answer.iter_bytes())
                answer.close()
            else:
                request.extensions["timeout"]["read"] = 0.2
                with pytest.raises(httpx.ReadTimeout):
                    client.send(request)
        server.settle(5)
        assert server.engines["tiny"].counters.steps < 470
        assert 'outcome="client_left"} 1.0' in httpx.get(f"{server.url}/metrics").text


def test_shutdown_finishes_running_requests_and_refuses_new_ones(checkpoint):
    found = []
    with live(tiny(checkpoint), drain=20) as server:
        client = server.client()

        def work() -> None:
            found.append(client.chat.completions.create(model="tiny", messages=user("a"), max_tokens=200))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        while server.engines["tiny"].running < 4:
            time.sleep(0.001)
        server.server.should_exit = True
        for thread in threads:
            thread.join()
    assert [answer.usage.completion_tokens for answer in found] == [200] * 4


def test_shutdown_fails_what_takes_too_long(checkpoint):
    with live(tiny(checkpoint), drain=0.2) as server:
        client = server.client()
        stream = client.chat.completions.create(model="tiny", messages=user("a"), max_tokens=490, stream=True)
        next(iter(stream))
        whole: list = []

        def work() -> None:
            try:
                client.chat.completions.create(model="tiny", messages=user("a"), max_tokens=490)
            except openai.APIStatusError as error:
                whole.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        while server.engines["tiny"].running < 2:
            time.sleep(0.001)
        # slow every step down, so that neither finishes by itself
        original = server.engines["tiny"]._batch.step
        server.engines["tiny"]._batch.step = lambda: (time.sleep(0.05), original())[1]
        server.server.should_exit = True
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        thread.join()
    assert (whole[0].status_code, whole[0].body["code"]) == (503, "shutting_down")
