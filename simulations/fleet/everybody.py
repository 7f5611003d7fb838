"""The exchange that all others are measured by: the mean of everybody who is here, as if no message could be lost."""

import numpy as np
import torch

from .exchange import Mixed, Moment


class Everybody:
    """One mean, weighted by samples where asked, which each node sends and gets as in one ring over all."""

    def __init__(self, *, weighted: bool) -> None:
        self._weighted = weighted

    def mix(self, moment: Moment) -> Mixed:
        count = int(moment.here.sum())
        weights = np.where(moment.here, moment.weights if self._weighted else 1.0, 0.0)
        shares = torch.from_numpy((weights / weights.sum()).astype(np.float32)).to(moment.after.device)
        models = moment.after
        mean = shares @ models
        models[torch.from_numpy(moment.here).to(models.device)] = mean
        size_bytes = np.where(moment.here, round(2 * 4 * models.shape[1] * (count - 1) / count), 0).astype(np.int64)
        averaged = np.where(moment.here, count, 1).astype(np.int64)
        return Mixed(
            models=models, bytes_sent=size_bytes, bytes_received=size_bytes, hops=2 * (count - 1), averaged=averaged
        )
