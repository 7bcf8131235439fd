"""Warnings of Lightning and its companions that every run would give, and that are not shown."""

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def without_expected_warnings() -> Iterator[None]:
    """Leave out warnings that no run of bnlab has to heed."""
    with warnings.catch_warnings():
        # images are in memory: loader processes would only slow it down
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        # the diagnostics record the first step of every epoch, however few steps it has
        warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
        # evaluation saves no checkpoint, so it does not matter where the run's folder has moved
        warnings.filterwarnings("ignore", "The dirpath has changed.*")
        # a resumed run finds its own checkpoints, and on ranks other than 0 the state of what only rank 0 has
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty.*")
        warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`.*")
        # Lightning 2.6 calls functions that go away in jsonargparse 5, hence the bound on it
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"lightning\.pytorch\.cli|jsonargparse")
        # Lightning 2.6 asks torch 2.15 for a class that is on its way out
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
        yield
