"""Arguments of config files."""

import pytest

from experiments.config import args
from experiments.errors import UserError

CHOICES = {
  "algorithm": ("rigl", "set"),
  "times": {"1x": 1, "5x": 5},
}


@pytest.mark.parametrize(
  ("arg", "algorithm", "times", "smoke"),
  [
    ("", "rigl", 1, False),
    ("smoke", "rigl", 1, True),
    ("5x,set", "set", 5, False),
    ("set,smoke,5x", "set", 5, True),
    ("set,,set", "set", 1, False),
  ],
)
def test_words_come_in_any_order_and_have_defaults(
  arg, algorithm, times, smoke
):
  words = args.parse(arg, **CHOICES)
  assert vars(words) == {
    "algorithm": algorithm,
    "times": times,
    "smoke": smoke,
  }


def test_smoke_may_be_a_choice_too():
  words = args.parse("smoke", variant=("bytes", "smoke"))
  assert (words.variant, words.smoke) == ("smoke", True)


def test_an_unknown_word_is_told_with_the_near_ones():
  with pytest.raises(UserError, match=r"argument of the config .* 'smoke'"):
    args.parse("smokee", **CHOICES)
  with pytest.raises(UserError, match="there are: smoke"):
    args.parse("80")


def test_words_that_contradict_each_other_are_told():
  with pytest.raises(
    UserError, match="'set,5x,rigl': set and rigl both choose its algorithm"
  ):
    args.parse("set,5x,rigl", **CHOICES)
