"""The embedded demo checkpoint: a small trained model of the DeepSeek-V3 architecture with its tokenizer.

world.py and chats.py generate the text it was trained on, training/ made it, questions.py measures it.
"""

import pathlib

HINT = (
    "This is a small demo model. Tell it a story (Anna is in the kitchen. Anna has a red ball. Anna goes to the park. "
    "Where is the ball?) or ask for a sum (What is 34 + 57?)."
)


def checkpoint_path() -> pathlib.Path:
    """The folder of the demo checkpoint, in the layout of Hugging Face."""
    return pathlib.Path(__file__).resolve().parent / "checkpoint"
