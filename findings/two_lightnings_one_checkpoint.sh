#!/usr/bin/env bash
# lightning 2.6.6 and pytorch-lightning 2.6.6 (the first brings the second along), torch 2.14.1, Python 3.11.
#
# The two packages hold the same code twice. A Trainer of `pytorch_lightning` takes callbacks of `lightning.pytorch`, and
# their hooks are called. But it does not see a ModelCheckpoint of the other package as one:
# - it adds its own beside it, and then raises "Found more than one stateful callback of type `ModelCheckpoint`", though the
#   user gave one;
# - with enable_checkpointing=False, which refuses its own ModelCheckpoint, the other package's is accepted and saves; but
#   Lightning moves only its own kind behind all other callbacks, so that the file holds the state that a callback behind
#   it had one epoch earlier: a counter of epochs says 4 after the fifth.
# Guessed before it was run: refused in both cases, or the same file as with its own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "torch==2.14.1" "lightning==2.6.6" "pytorch-lightning==2.6.6"
cd "$folder"
cat > show.py <<'PYTHON'
import logging
import tempfile
import warnings

import lightning.pytorch as other
import pytorch_lightning as own
import torch

warnings.simplefilter("ignore")
for name in ("lightning.pytorch", "pytorch_lightning"):
    logging.getLogger(name).setLevel(logging.ERROR)


class Counts(own.Callback):
    epochs = 0

    def on_train_epoch_end(self, trainer, pl_module):
        self.epochs += 1

    def state_dict(self):
        return {"epochs": self.epochs}


class Module(own.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def saved(package, checkpointing):
    """What the checkpoint of the fifth epoch holds of a callback behind ModelCheckpoint, or the error."""
    folder = tempfile.mkdtemp()
    keep = package.callbacks.ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True)
    try:
        trainer = own.Trainer(
            max_epochs=5, callbacks=[keep, Counts()], logger=False, enable_checkpointing=checkpointing, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False,
        )
        trainer.fit(Module(), torch.utils.data.DataLoader(torch.zeros(4, 1)))
    except Exception as error:
        return type(error).__name__
    return torch.load(f"{folder}/last.ckpt", weights_only=False)["callbacks"]["Counts"]["epochs"]


for package in (own, other):
    for checkpointing in (True, False):
        print(package.__name__, checkpointing, saved(package, checkpointing))
PYTHON
"$folder/env/bin/python" show.py 2> /dev/null | grep -E '^(lightning|pytorch_lightning)' | tee seen
cat > expected <<'TEXT'
pytorch_lightning True 5
pytorch_lightning False MisconfigurationException
lightning.pytorch True RuntimeError
lightning.pytorch False 4
TEXT
diff expected seen && echo "as found"
