"""A help for the beginning of training: shows some attention heads where the answers stand in the stories.

Who did something stands some words before where or what. Until one layer brings the two together no later layer can
look anything up by name, and the few words of the answers alone take very long to teach both.
"""

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn

from mlc_dsv3.demo.training.data import Batch
from mlc_dsv3.demo.training.model import DemoModel
from mlc_dsv3.demo.world import COLOURS, NAMES, PLACES, THINGS

WORDS = {"name": NAMES, "thing": THINGS, "place": PLACES, "colour": COLOURS}
# What the first layer's output has to tell: the person and the thing named last.
READERS = ("name", "thing")
# Where (layer, head) has to look: what was told of the person or thing named last; and the last number given away.
HEADS = {
    "place": (1, 0),
    "colour": (1, 1),
    "holder": (1, 2),
    "number": (1, 3),
    "holders_place": (2, 0),
    "given": (2, 1),
}


class Aid(nn.Module):
    """The loss of two linear readers and six attention heads; thrown away after training."""

    def __init__(self, tokenizer: Tokenizer, hidden_size: int) -> None:
        super().__init__()
        self.classes: dict[int, tuple[str, int]] = {}
        for kind, words in WORDS.items():
            for index, word in enumerate(words):
                for ids in (tokenizer.encode(word).ids, tokenizer.encode(f" {word}").ids):
                    if len(ids) == 1:
                        self.classes[ids[0]] = (kind, index)
        self.has, self.to, self.gives = (tokenizer.encode(word).ids[0] for word in (" has", " to", " gives"))
        self.digits = {tokenizer.token_to_id(str(digit)) for digit in range(10)}
        self.readers = nn.ModuleDict({kind: nn.Linear(hidden_size, len(WORDS[kind])) for kind in READERS})

    def loss(self, model: DemoModel, batch: Batch) -> torch.Tensor:
        """The sum of the mean cross-entropies for the forward pass that `model` has just made of `batch`."""
        rows = [self._follow(*row) for row in zip(batch.tokens.tolist(), batch.documents.tolist(), strict=True)]
        targets = {kind: torch.tensor([row[kind] for row in rows]) for kind in (*READERS, *HEADS)}
        total = _mean_loss(self.readers["name"](model.outputs[0]), targets["name"])
        total = total + _mean_loss(self.readers["thing"](model.outputs[0]), targets["thing"])
        for kind, (layer, head) in HEADS.items():
            total = total + _mean_loss(model.layers[layer].self_attn.scores[:, head], targets[kind])
        return total

    def _follow(self, tokens: list[int], documents: list[int]) -> dict[str, list[int]]:
        """For a row of packed chats: what each reader has to say and where each head has to look, -1 for nothing."""
        result = {kind: [-1] * len(tokens) for kind in (*READERS, *HEADS)}
        document = None
        for i, token in enumerate(tokens):
            if documents[i] == 0:
                break
            if documents[i] != document:
                document = documents[i]
                name = thing = None  # named last: (which, position)
                given = -1
                place, holder, who, number, colour = ({} for _ in range(5))
            kind, which = self.classes.get(token, (None, -1))
            if kind == "name":
                name = (which, i)
                if tokens[i - 1] == self.to and thing:
                    holder[thing[0]], who[thing[0]] = i, which
            elif kind == "thing":
                thing = (which, i)
                if name and self.classes.get(tokens[i - 1], ("", 0))[0] == "colour":
                    holder[which], who[which] = i, name[0]
                    colour[name[0], which] = i - 1
            elif kind == "place" and name and (thing is None or thing[1] < name[1]):
                place[name[0]] = i
            elif token in self.digits and name and tokens[i - 2] == self.has:
                number[name[0]] = i
            elif token in self.digits and tokens[i - 2] == self.gives:
                given = i
            result["given"][i] = given
            if name:
                result["name"][i] = name[0]
                result["place"][i] = place.get(name[0], -1)
                result["number"][i] = number.get(name[0], -1)
            if thing:
                result["thing"][i] = thing[0]
                result["holder"][i] = holder.get(thing[0], -1)
                result["holders_place"][i] = place.get(who.get(thing[0]), -1)
                owners = [key for key in colour if key[1] == thing[0]]
                if owners:
                    result["colour"][i] = colour.get((name[0] if name else -1, thing[0]), colour[owners[-1]])
        return result


def _mean_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean over the targets that are not -1; 0 (with gradients, which all processes need) where there is none."""
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-1, reduction="sum")
    return loss / (target >= 0).sum().clamp(min=1)
