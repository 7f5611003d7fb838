"""Tokenizers of the models of a mesh: made on the asking node from a few files, which it fetches once."""

from collections import OrderedDict
from typing import Final

import trio

from .blobs.sharing import Blobs
from .deployments import BlobRef, DeploymentRecord
from .language.config import parse_config
from .language.tokenizer import FILES, LanguageTokenizer

_KEPT_MAX: Final = 8  # in memory: the largest take some hundred megabytes


class Tokenizers:
    """Those that this node has asked with of late."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._kept: OrderedDict[BlobRef, LanguageTokenizer] = OrderedDict()
        self._making = trio.Lock()

    async def of(self, name: str, deployment: DeploymentRecord) -> LanguageTokenizer:
        """Return a model's tokenizer. Raises LinkError when nobody has it, UsageError for a wrong one."""
        async with self._making:
            found = self._kept.pop(deployment.manifest, None) or await self._made(name, deployment)
            self._kept[deployment.manifest] = found
            while len(self._kept) > _KEPT_MAX:
                self._kept.popitem(last=False)
            return found

    async def _made(self, name: str, deployment: DeploymentRecord) -> LanguageTokenizer:
        manifest = await self._blobs.manifest(name, deployment.manifest)
        files: dict[str, bytes] = {
            file: await self._blobs.data(name, manifest.files[file]) for file in FILES if file in manifest.files
        }
        eos = parse_config(manifest.config).eos if manifest.kind == "causal_lm" else ()
        return await trio.to_thread.run_sync(lambda: LanguageTokenizer(files, eos))
