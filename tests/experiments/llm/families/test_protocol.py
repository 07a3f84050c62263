"""What all architectures agree on."""

import numpy as np
import pytest

from experiments.errors import UserError
from experiments.llm.families import protocol
from tests.experiments.small_llama import CONFIG


def test_tokens_that_the_model_has_not():
  protocol.check_tokens(CONFIG, np.array([[0, CONFIG.vocab_size - 1]]))
  with pytest.raises(UserError, match="from 3 to 23, wanted 0 to 22"):
    protocol.check_tokens(CONFIG, np.array([3, 23]))
  with pytest.raises(UserError, match="from -1 to 3"):
    protocol.check_tokens(CONFIG, np.array([3, -1]))
