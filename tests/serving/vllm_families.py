"""Families of models and quantised weights under vLLM, each against the transformers runtime.

    python tests/serving/vllm_families.py [--write] [NAME …]

prints a line of the tables for each, as soon as it is known; with --write they go into docs/serving_families.md, where
the lines of those that were not tried stay.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]  # as pytest has them

from vllm_family_list import FAMILIES, QUANTISED, Family
from vllm_family_tried import result_of

PAGE = Path(__file__).parents[2] / "docs" / "serving_families.md"
DENSE_REFUSED = "methods residual, hybrid and fitted"


@dataclass(frozen=True)
class Seen:
    """What became of a family: ``equal``, or why not.

    Args:
        code: Whose implementation vLLM runs, its own or that of transformers.
        neurons: With equation 4.
        dense: With the dense part of ``residual`` and ``hybrid``.
    """

    code: str
    neurons: str
    dense: str

    def line(self, family: Family) -> str:
        """Of the table."""
        dense = "the same" if self.dense == self.neurons else _said(self.dense)
        return f"| {family.name} | {self.code} | {_said(self.neurons)} | {dense} | {family.note} |"


def _said(result: str) -> str:
    return result.replace("NptiError: ", "refused: ", 1).replace("AssertionError: ", "differs: ", 1).replace("|", "/")


def seen(family: Family, log: Path) -> Seen:
    """Tries a family: once if it takes a dense part too, and again where that alone is refused."""
    code, both = result_of(family, True, log)
    if DENSE_REFUSED not in both:
        return Seen(code, both, both)
    return Seen(code, result_of(family, False, log.with_suffix(".neurons.log"))[1], both)


def page(lines: dict[str, str]) -> str:
    """The text of docs/serving_families.md.

    Args:
        lines: Of the tables, by the family's name.
    """

    def of(families: Iterable[Family]) -> str:
        return "\n".join(
            lines.get(family.name, Seen("–", "not tried", "not tried").line(family)) for family in families
        )

    return TEXT.format(families=of(FAMILIES), quantised=of(QUANTISED))


def main() -> None:
    from vllm import LLM  # noqa: F401  # before the processes are forked that need it

    named = [name for name in sys.argv[1:] if name != "--write"]
    logs = Path(tempfile.mkdtemp())
    print(f"logs: {logs}", file=sys.stderr)
    for family in [*FAMILIES, *QUANTISED]:
        if named and family.name not in named:
            continue
        line = seen(family, logs / f"{family.name}.log").line(family)
        print(line, flush=True)
        if "--write" in sys.argv[1:]:
            written = PAGE.read_text("utf-8").splitlines() if PAGE.exists() else []
            lines = {old.split(" | ")[0].strip("| "): old for old in written if old.startswith("| ")}
            PAGE.write_text(page(lines | {family.name: line}), encoding="utf-8")


TEXT = """# Model families under vLLM

Written by `python tests/serving/vllm_families.py --write`, in vLLM 0.32 on a CPU. Each is a tiny random float32 model
with an adapter of random neurons, part of which adds to the residual stream too (the methods `residual` and `hybrid`:
*dense part*), asked in one batch for several personalities and for none. *Equal*: every answer has the tokens and,
within 1e-4, the log-probabilities of `load_personality` under transformers, and each personality moves them by more
than five times what is allowed. The names are those of the config classes of transformers 5; *code* is whose
implementation vLLM runs, its own or that of transformers.

| family | code | neurons | dense part | special |
|---|---|---|---|---|
{families}

A family that is not in the table works if its layers are built like one of these: sites are found by their shape, each
layer is run on one token as it is and moved, and what does not answer is refused at the start with the module's name.
In layers with a gate SiluAndMul, GeluAndMul and GeluAndMulSparse can be steered, in others, and where the model splits
gate and up itself, any activation that maps number by number.

## Quantised weights

As above, with weights as checkpoints of compressed-tensors hold them, against a transformers model whose maps round
weights and inputs to the same numbers in plain PyTorch and that `load_personality` steers. A number between two of the
format may be rounded the one way here and the other way there, so answers lie further apart; the table says how far.

| checkpoint | code | neurons | dense part | special |
|---|---|---|---|---|
{quantised}

The INT8 weights are 63 at most: on processors without VNNI vLLM's INT8 kernel (oneDNN) saturates with larger ones, and
what it answers without any plugin is then off as well, by 0.1 nats in these models.

Untested, because vLLM's CPU build has no kernel for them, or none for the processor at hand (AVX2): FP8 with static
scales of inputs (in Llama's layers), FP8 in blocks, FP8 weights with inputs as they are, weights of 4 bits (GPTQ, AWQ,
compressed-tensors), MXFP8, MXFP4 and NVFP4; and torchao, Quark, ModelOpt and `--quantization` at load time, which were
not tried. vLLM 0.32 has neither bitsandbytes nor GGUF. What its sources tell of them: an activation is fused with the
quantisation behind it by its type (`maybe_fused_act_quant`) or as a pattern of the compiled graph (`fuse_act_quant`),
and the plugin's activation is neither that type nor that pattern, so the edit stays in the path and the two kernels run
one after the other. With static scales the next map clamps its input to the range it was calibrated on: a strong dose
saturates there.
"""

if __name__ == "__main__":
    main()
