"""Text and questions that language models are trained and tested on."""
