"A caption that is longer than a model reads is refused by name, or cut between words with its length on record."

import pytest

from localdpo import backbones
from localdpo.backbones.captions import count_tokens, read_caption
from localdpo.clips.world import prompt, specs
from localdpo.ground.errors import Refused

WORDS = [word for spec in list(specs())[:40] for word in prompt(spec, long=True).split()]


@pytest.fixture(scope="module", params=["tiny-cogvideox-2b", "tiny-wan-1.3b"])
def tiny(request):
    return backbones.load(request.param, "cpu")


@pytest.mark.parametrize("count", [1, 20, 34, 35, 36, 37, 100, 400])
def test_the_longest_beginning_that_fits_is_read(tiny, count):
    caption = " ".join(WORDS[:count])
    read = read_caption(tiny, caption, "cut")
    assert read.tokens == count + 1  # the end mark counts
    assert read.cut == (count > 35) and count_tokens(tiny, read.text) == min(count, 35) + 1
    assert caption.startswith(read.text) and caption[len(read.text) :][:1] in ("", " ", ",")
    list(tiny.tokens([read.text]))


def test_what_is_too_long_is_refused_unless_asked_to_be_cut(tiny):
    caption = " ".join(WORDS[:36])
    with pytest.raises(Refused, match=f"has 37 tokens, {tiny.name} reads 36\n.*--long-captions cut"):
        read_caption(tiny, caption)
    assert read_caption(tiny, " ".join(WORDS[:35])).cut is False
    with pytest.raises(Refused, match="use refuse or cut"):
        read_caption(tiny, "a red disc", "drop")


def test_unknown_words_are_refused_where_they_are_read_and_ignored_where_they_are_not(tiny):
    with pytest.raises(Refused, match="never saw: elephant"):
        read_caption(tiny, " ".join(["elephant", *WORDS[:50]]), "cut")
    assert read_caption(tiny, " ".join([*WORDS[:50], "elephant"]), "cut").cut


def test_counting_says_nothing_on_the_screen(capfd):
    fresh = backbones.load("tiny-cogvideox-2b", "cpu")  # the libraries warn once for each tokenizer
    read_caption(fresh, " ".join(WORDS[:60]), "cut")
    assert capfd.readouterr() == ("", "")
