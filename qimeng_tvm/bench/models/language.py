"""Models of text, as Hugging Face has them: BERT, and a Llama with its key-value cache as arguments and results."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import Cache, StaticLayer

#: Llama-3.2-1B; its layers can be fewer.
LLAMA_1B: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
#: Added to the score of a position that is not to be seen: none at all, in every data type.
_HIDDEN = -1e30


class Encoder(nn.Module):
    """A BERT as a function from tokens to its last hidden state."""

    def __init__(self, layers: int | None = None, **sizes: int) -> None:
        super().__init__()
        config = BertConfig(num_hidden_layers=layers or 12, **sizes)
        self.model = BertModel(config, add_pooling_layer=False)

    def forward(self, tokens: torch.Tensor) -> Any:
        """Return the hidden state of every token."""
        return self.model(input_ids=tokens, return_dict=True).last_hidden_state


class _Layer(StaticLayer):
    """The cache of one layer, nothing of which is changed in place: what is new is handed back.

    ``keys`` and ``values`` have a fixed size, and ``here`` is true at the new token's position; without them the cache
    begins with what is new.
    """

    def __init__(self, keys: torch.Tensor | None, values: torch.Tensor | None, here: torch.Tensor | None) -> None:
        super().__init__(max_cache_len=0 if keys is None else keys.shape[2])
        self.held: Any = (keys, values)
        self.here = here
        self.new: tuple[torch.Tensor, ...] = ()

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Return what the layer attends to."""
        self.new = key_states, value_states
        if self.here is None:
            return self.new
        keys, values = self.held
        return torch.where(self.here, key_states, keys), torch.where(self.here, value_states, values)


class Decoder(nn.Module):
    """A Llama as a function of tokens and cache to the last token's logits and what is new of the cache.

    The caller writes that into its cache. So a call changes nothing, and every system computes the same every time.
    """

    def __init__(self, layers: int | None = None, **sizes: Any) -> None:
        super().__init__()
        config = {**LLAMA_1B, **sizes}
        self.model = LlamaForCausalLM(LlamaConfig(**{**config, "num_hidden_layers": layers or 16}))

    def forward(self, tokens: torch.Tensor, position: torch.Tensor | None = None, *cache: torch.Tensor) -> Any:
        """Prefill with all of ``tokens``, or with ``position`` decode one more.

        Parameters
        ----------
        tokens : Tensor
            ``[batch, length]``; of length 1 when there is a cache.
        position : Tensor, optional
            ``[1]``: how many tokens the cache holds.
        *cache : Tensor
            Keys of every layer, then their values, each ``[batch, heads, size, width]``.
        """
        count = self.model.config.num_hidden_layers
        size = tokens.shape[1] if position is None else cache[0].shape[2]
        columns = torch.arange(size)
        rows = torch.arange(tokens.shape[1]) if position is None else position
        here = None if position is None else (columns == position)[:, None]
        kept = cache or (None,) * (2 * count)
        layers = [_Layer(kept[i], kept[count + i], here) for i in range(count)]
        mask = torch.where(columns[None, :] <= rows[:, None], 0.0, _HIDDEN).to(self.model.dtype)
        logits = self.model(
            input_ids=tokens,
            attention_mask=mask[None, None].expand(tokens.shape[0], 1, -1, -1),
            position_ids=rows[None, :],
            cache=Cache(layers=layers),
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
        ).logits
        return logits, *(layer.new[0] for layer in layers), *(layer.new[1] for layer in layers)


def tokens(batch: int, length: int, vocabulary: int = 30522) -> tuple[torch.Tensor, ...]:
    """Return random tokens."""
    return (torch.randint(0, vocabulary, (batch, length)),)


def decode_inputs(model: Any, batch: int, held: int, size: int) -> tuple[torch.Tensor, ...]:
    """Return a token, the position behind ``held`` others, and a cache of ``size`` that holds these."""
    config = model.model.config
    shape = (batch, config.num_key_value_heads, size, config.head_dim)
    cache = []
    for _ in range(2 * config.num_hidden_layers):
        layer = torch.randn(shape)
        layer[:, :, held:] = 0
        cache.append(layer)
    return (*tokens(batch, 1, config.vocab_size), torch.tensor([held]), *cache)
