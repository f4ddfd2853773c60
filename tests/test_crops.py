"""What a processor cuts off a picture is found for any of them, and said once."""

from __future__ import annotations

import copy
import logging
import threading

import pytest
from PIL import Image

from adaptprune.prompts import crops
from adaptprune.prompts.crops import note_crop, sides_cut
from adaptprune.testing import zoo

WHOLE = (
    "llava_next",
    "llava_onevision",
    "qwen2_vl",
    "internvl",
    "idefics3",
    "gemma3",
    "paligemma",
    "mistral3",
    "llama4",
)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(crops, "_said", set())
    monkeypatch.setattr(crops, "_known", {})


def llava(**settings):
    processor = copy.deepcopy(zoo.specimen("llava").processor)  # specimens are shared
    for name, value in settings.items():
        assert hasattr(processor.image_processor, name)
        setattr(processor.image_processor, name, value)
    return processor


def edge(side: int) -> dict[str, int]:
    return {"shortest_edge": side}


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((300, 300), (0, 0, 0, 0)),
        ((600, 300), (1 / 4, 1 / 4, 0, 0)),
        ((300, 900), (0, 0, 1 / 3, 1 / 3)),
        ((400, 300), (1 / 8, 1 / 8, 0, 0)),
    ],
)
def test_a_square_out_of_the_middle(size, expected):
    """LLaVA-1.5 as it was converted: the shorter side is scaled to the square, and the rest of the longer goes."""
    processor = llava(size=edge(112), crop_size=square(112))
    assert sides_cut(processor, size) == pytest.approx(expected, abs=0.02)


def test_a_margin_is_cut_off_square_pictures_too():
    processor = llava(size=edge(128), crop_size=square(112))
    assert sides_cut(processor, (300, 300)) == pytest.approx((1 / 16,) * 4, abs=0.02)


def test_pictures_that_are_not_scaled_lose_by_their_size_not_their_shape(caplog):
    processor = llava(do_resize=False, crop_size=square(112))
    assert sides_cut(processor, (112, 112)) == pytest.approx((0, 0, 0, 0), abs=0.02)
    assert sides_cut(processor, (224, 112)) == pytest.approx((1 / 4, 1 / 4, 0, 0), abs=0.02)
    note_crop(processor, [Image.new("RGB", (100, 100))])
    assert not caplog.records
    note_crop(processor, [Image.new("RGB", (400, 400))])
    assert "LlavaProcessor cuts off 92% of a picture of 400 x 400 pixels" in caplog.text


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("size", [(400, 300), (300, 800)])
def test_processors_that_tile_scale_or_pad_lose_nothing(name, size, caplog):
    """Also those that have a setting called do_center_crop, and do not use it so."""
    processor = zoo.specimen(name).processor
    left, right, top, bottom = sides_cut(processor, size)
    assert 1 - (1 - left - right) * (1 - top - bottom) < 0.05
    note_crop(processor, [Image.new("RGB", size)])
    assert not caplog.records


def test_it_is_said_once_for_a_class_of_processors(caplog):
    processor = llava(size=edge(112), crop_size=square(112))
    note_crop(processor, [Image.new("RGB", (310, 300))])
    assert not caplog.records, "less than a tenth"
    note_crop(processor, [Image.new("RGB", (300, 300)), Image.new("RGB", (1280, 720))])
    (record,) = caplog.records
    assert (record.name.partition(".")[0], record.levelno) == ("adaptprune", logging.WARNING)
    text = record.getMessage()
    assert text.startswith("LlavaProcessor cuts off 4")
    assert "of a picture of 1280 x 720 pixels (22% at the left, 22% at the right)" in text
    assert "Pad pictures to a square" in text
    assert "\n" not in text
    note_crop(processor, [Image.new("RGB", (100, 900))])
    note_crop(llava(size=edge(56), crop_size=square(56)), [Image.new("RGB", (100, 900))])
    assert len(caplog.records) == 1


def test_a_shape_is_tried_once(monkeypatch):
    tried = []
    monkeypatch.setattr(crops, "sides_cut", lambda processor, size: tried.append(size) or (0, 0, 0, 0))
    for _ in range(3):
        note_crop(llava(), [Image.new("RGB", (640, 480)), Image.new("RGB", (1280, 960)), Image.new("RGB", (480, 640))])
    assert tried == [(85, 64), (64, 85)]


def test_threads_say_it_once(caplog):
    processor = llava(size=edge(112), crop_size=square(112))
    wide = Image.new("RGB", (900, 300))
    threads = [threading.Thread(target=note_crop, args=(processor, [wide])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(caplog.records) == 1


def test_what_is_no_processor_is_left_in_peace(caplog):
    caplog.set_level(logging.WARNING)
    note_crop(object(), [Image.new("RGB", (900, 300))])
    assert not caplog.records


def test_another_processor_of_the_same_class_is_looked_at_itself(caplog):
    picture = Image.new("RGB", (600, 300))
    for processor, said in ((llava(do_center_crop=False, size=square(28)), 0), (llava(), 1)):
        note_crop(processor, [picture])
        assert len(caplog.records) == said
