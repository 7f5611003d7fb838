"""A layer that reads a sequence step by step and hands on what it remembers at the end: an LSTM.

Hochreiter and Schmidhuber 1997, with the forget gate of Gers, Schmidhuber and Cummins 2000. For x_t (F,), the hidden
state h_t (H,) and the cell c_t (H,), both zero at the start:

    i, f, g, o = W x_t + R h_(t-1) + b      (H,) each
    c_t = sigmoid(f) * c_(t-1) + sigmoid(i) * tanh(g)
    h_t = sigmoid(o) * tanh(c_t)

Written out instead of taken from `torch.nn.LSTM`: that one keeps a second list of its parameters, which the views that
a trainer makes of them and the per-record gradients of differential privacy would have to follow. It takes about twice
the time of torch's, on the digits' rows 1.6 ms a batch in place of 0.7.
"""

import torch
from torch import Tensor, nn


class Recurrent(nn.Module):
    """h_T of a sequence: (B, T, F) to (B, H)."""

    def __init__(self, steps: int, features: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4 * hidden, features, device="meta"))  # rows in the order i, f, g, o
        self.recurrent = nn.Parameter(torch.empty(4 * hidden, hidden, device="meta"))
        self.bias = nn.Parameter(torch.empty(4 * hidden, device="meta"))
        self._sequence = (steps, features)
        self._hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, F), or anything that lies as that does, to (B, H)."""
        driven = nn.functional.linear(x.reshape(-1, *self._sequence), self.weight, self.bias)  # (B, T, 4 H)
        h = c = driven.new_zeros(driven.shape[0], self._hidden)  # `len` would make a traced batch a constant
        for step in driven.unbind(1):
            i, f, g, o = (step + nn.functional.linear(h, self.recurrent)).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return h
