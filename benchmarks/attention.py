"""`AttentionMonitor`'s recorder on nets of `transformers` with random weights: how exact it is, and what a step costs.

    OMP_NUM_THREADS=1 python -m benchmarks.attention [--rounds 9] [--only llama]

Needs `transformers`, which nothing else here does. The reference is another way to the same numbers: a dispatch mode
takes what the eager implementation gives to softmax, and attention's definitions are written out in float64 for it.
Compared with it are the eager and the SDPA implementation of a net with the same weights. Batches are so small that all
queries are drawn.
"""

from __future__ import annotations

import argparse
import copy
import math
import platform
import time
import warnings
from collections.abc import Callable, Iterable
from random import Random
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bnlab_callbacks.core.ranks import Ranks
from bnlab_callbacks.core.records import Moment
from bnlab_callbacks.core.shared import SharedRecorders
from bnlab_callbacks.recorders.attention import AttentionRecorder, AttentionStep
from bnlab_callbacks.recorders.attention_tables import AttentionTables
from bnlab_callbacks.statistics.attention import DotProducts, attention_sums, draw_queries

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = SMALL | {"vocab_size": 97}
LLAMA = TEXT | {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 0}
T5 = {
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4}


class Net(NamedTuple):
    """A net of `transformers`, and what it is given."""

    config: str
    model: str
    options: dict[str, Any]
    inputs: Callable[[], dict[str, Tensor]]
    ways: tuple[str, ...] = ("eager", "sdpa")


def words() -> Tensor:
    """(2, 12)."""
    return torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(0))


def padded() -> dict[str, Tensor]:
    """The second sequence has 7 words."""
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 7:] = 0
    return {"input_ids": words(), "attention_mask": mask}


def pictures() -> dict[str, Tensor]:
    """(2, 3, 24, 24): nine patches of 8 × 8 each."""
    return {"pixel_values": torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))}


def picture() -> dict[str, Tensor]:
    """(1, 3, 16, 16): four windows of 4 × 4 patches."""
    return {"pixel_values": torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


def translated() -> dict[str, Tensor]:
    """Padded words, and words to come."""
    return padded() | {"labels": words()}


VIT = SMALL | {"image_size": 24, "patch_size": 8}
NETS = {
    "vit": Net("ViTConfig", "ViTModel", VIT, pictures),
    "gpt2": Net("GPT2Config", "GPT2Model", GPT2 | {"eos_token_id": 0, "attn_pdrop": 0.0}, padded),
    "bert": Net("BertConfig", "BertModel", TEXT, padded),
    "t5": Net("T5Config", "T5ForConditionalGeneration", T5 | {"dropout_rate": 0.0}, translated, ("eager",)),
    "llama": Net("LlamaConfig", "LlamaModel", LLAMA, padded),
    "gemma2": Net("Gemma2Config", "Gemma2Model", LLAMA | {"head_dim": 8}, padded, ("eager",)),
    "deberta": Net("DebertaV2Config", "DebertaV2Model", TEXT, padded, ("eager",)),
    "swin": Net("SwinConfig", "SwinModel", SWIN, picture),
}


class Softmaxes(TorchDispatchMode):
    """Takes what softmax over the last dimension is given, if it has four dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it."""
        if func is torch.ops.aten._softmax.default and args[0].ndim == 4:
            self.seen.append(args[0].detach().clone())
        return func(*args, **(kwargs or {}))


def by_definition(logits: Tensor) -> dict[str, float]:
    """One call's record in float64."""
    allowed = logits > torch.finfo(logits.dtype).min / 2
    z = logits.double().masked_fill(~allowed, -math.inf)
    n, p = allowed.sum(-1), z.softmax(-1)
    several = n > 1
    first = several & allowed[..., 0]
    return {
        "attn_logit_max": float(z.max()),
        "attn_entropy": float((torch.special.entr(p).sum(-1)[several] / n[several].log()).mean()),
        "attn_first": float(p[..., 0][first].mean()),
        "attn_first_even": float((1 / n)[first].mean()),
        "attn_one_key_frac": float((n == 1).double().mean()),
        "attn_no_key_frac": float((n == 0).double().mean()),
    }


class Reader:
    """A reader of every step."""

    def __init__(self) -> None:
        self.steps: list[AttentionStep] = []

    def due(self, moment: Moment, stream: str = "") -> bool:
        """Always."""
        return True

    def mark(self, moment: Moment, stream: str = "") -> None:
        """Nothing to note."""

    def wants(self, layer: str) -> bool:
        """Any."""
        return True

    def take(self, moment: Moment, left: AttentionStep, seconds: float) -> None:
        """Keep it."""
        self.steps.append(left)

    def recorder_failed(self, reason: str) -> None:
        """It must not."""
        raise RuntimeError(reason)


def made(net: Net, way: str) -> nn.Module:
    """The net in training mode without dropout; the same weights whatever the way."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, net.config)(**net.options)
    config._attn_implementation = way
    model: nn.Module = getattr(transformers, net.model)(config)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    with torch.no_grad():  # weights of 0.02 give logits near 0
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and ("attn" in name or "attention" in name.lower()):
                parameter *= 5
    return model.train()


def loss_of(out: Any) -> Tensor:
    """Something that depends on all of the net's outputs."""
    first = out[0] if not isinstance(out, Tensor) else out
    return first.square().mean()  # type: ignore[no-any-return]


def a_step(model: nn.Module, inputs: dict[str, Tensor], recorder: AttentionRecorder | None, step: int = 0) -> None:
    """A forward and a backward pass, recorded or not."""
    if recorder is not None:
        recorder.begin_batch(Moment(step, 0), step)
    loss = loss_of(model(**inputs))
    if recorder is not None:
        recorder.before_backward()
    loss.backward()
    if recorder is not None:
        recorder.after_backward()
        recorder.end_batch(Moment(step, 0), step + 1)


def deviations(name: str) -> Iterable[str]:
    """A line for each implementation of a net: the largest difference, relative where values are above 1."""
    net = NETS[name]
    softmaxes = Softmaxes()
    with softmaxes:
        a_step(made(net, "eager"), net.inputs(), None)
    wanted = [by_definition(logits) for logits in softmaxes.seen]
    for way in net.ways:
        model, reader = made(net, way), Reader()
        recorder = SharedRecorders(Ranks()).join(AttentionRecorder, reader, model)
        a_step(model, net.inputs(), recorder)
        (table,) = AttentionTables().read(reader.steps)
        record = dict(zip(table.tags, table.values[0].tolist(), strict=True))
        layers = list(dict.fromkeys(tag.partition("/")[2] for tag in record))
        worst = max(
            abs(record[f"{quantity}/{layer}"] - value) / max(1.0, abs(value))
            for layer, values in zip(layers, wanted, strict=True)
            for quantity, value in values.items()
        )
        largest = max(values["attn_logit_max"] for values in wanted)
        recorder.leave(reader)  # type: ignore[arg-type]
        found = f"{len(layers)} calls, largest logit {largest:6.2f}, deviation {worst:.0e}"
        yield f"{name:8} {way:6} {found}  ({layers[0]})"


def drawn_error(unlike: float, seeds: int = 200) -> float:
    """Mean relative deviation of the entropy from that of all queries, of a causal attention over 32 × 256 words.

    Logits grow 15-fold along each sequence; and a whole sequence's are up to `unlike` larger or smaller.
    """
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(32, 4, 256, 16, generator=generator) * torch.linspace(0.2, 3, 256)[:, None]
    query = query * (1 + unlike * (2 * torch.rand(32, 1, 1, 1, generator=generator) - 1))
    logits = DotProducts(query, torch.randn(32, 4, 256, 16, generator=generator), None, True, 0.25)
    whole = attention_sums(logits, [(one, list(range(256))) for one in range(32)]).sum(1)
    found = [attention_sums(logits, draw_queries(32, 256, Random(seed))).sum(1) for seed in range(seeds)]
    return sum(abs(float(one[1] / one[2] / (whole[1] / whole[2])) - 1) for one in found) / seeds


def cost(rounds: int, way: str) -> tuple[float, float]:
    """Seconds of a recorded step over those of one that is not, and a null control: medians over rounds.

    GPT-2 of 4 layers, 256 wide, 8 sequences of 128 words.
    """
    size = {
        "vocab_size": 1000,
        "n_embd": 256,
        "n_layer": 4,
        "n_head": 4,
        "n_positions": 128,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    net = Net("GPT2Config", "GPT2Model", size, dict)
    model = made(net, way)
    inputs = {"input_ids": torch.randint(1000, (8, 128))}
    watched, reader = copy.deepcopy(model), Reader()
    recorder = SharedRecorders(Ranks()).join(AttentionRecorder, reader, watched)
    ratios, null = [], []
    for step in range(rounds + 2):
        times = []
        for with_recorder in (False, True, False):
            start = time.perf_counter()
            a_step(watched if with_recorder else model, inputs, recorder if with_recorder else None, step)
            times.append(time.perf_counter() - start)
        ratios.append(times[1] / times[0])
        null.append(times[2] / times[0])
    recorder.leave(reader)  # type: ignore[arg-type]
    return median(ratios[2:]), median(null[2:])


def main(arguments: Iterable[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=NETS)
    given = parser.parse_args(list(arguments) if arguments is not None else None)
    warnings.simplefilter("ignore")
    import transformers

    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}")
    for name in [given.only] if given.only else NETS:
        for line in deviations(name):
            print(line, flush=True)
    if given.only is None:
        for unlike in (0.0, 0.5, 1.0):
            print(
                f"entropy from drawn queries: {drawn_error(unlike):.1%} off; sequences' logits differ by ±{unlike:.0%}"
            )
        for way in ("eager", "sdpa"):
            ratio, null = cost(given.rounds, way)
            print(f"a recorded step, GPT-2 {way}: {ratio:.2f} of one that is not (null control {null:.2f})", flush=True)


if __name__ == "__main__":
    main()
