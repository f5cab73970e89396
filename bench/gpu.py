"""Everything that wants a CUDA machine, in one command and without a network.

    python -m bench.gpu [--part NAME ...] [--device cuda|cpu] [--small]

Everything takes some ten minutes, most of it in `http` and `diffusers`; --part splits it. Each of several parts has a
process of its own: what one breaks on the device, or keeps of its memory, is none of the next one's business.

denoise     8 forwards at the 6B's shapes with random weights: each level, each size
products    a block's four wide products alone, in bf16, int8 and fp8, rows quantized before
waterfall   the passes one on top of the other: seconds, memory, distance of one forward from plain eager
parity      the tests that need a device: bf16 beside diffusers, kernels beside eager arithmetic, graphs, attention
companions  text encoder and VAE at their published shapes
expansion   the text encoder writes 150 tokens after a prompt of 250: launch by launch, and as a CUDA graph per token
pictures    a whole engine in this process: prompt to pixels, pictures a second
http        the same behind the server: seconds of a request for a PNG as base64, pictures a second at four connections
diffusers   its transformer at the same shapes, eager and with its blocks compiled

Each part writes gpu-PART.json after every row: into bench/results, or where BENCH_RESULTS says. Shares are of the
device's own rate for one large product in bf16. Parts whose packages are not installed say so. `--device cpu --small`
runs the same code at tiny shapes, with the kernels interpreted.
"""

import argparse
import asyncio
import gc
import importlib.util
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from bench.full_size import flop
from bench.report import keep, publish
from bench.waterfall import Rung, climb
from zturbo.engine.machine import Machine, detect
from zturbo.engine.plan import GIB
from zturbo.models.attention import round_up
from zturbo.models.configs import TransformerConfig
from zturbo.models.text_encoder import Qwen3
from zturbo.models.vae import Decoder
from zturbo.params import ACCELERATIONS, GenerationParams
from zturbo.weights import published

if TYPE_CHECKING:
    from bench.random_engine import Shapes
    from zturbo.engine.engine import Engine
    from zturbo.engine.pipeline import Pipeline
    from zturbo.engine.writing import Writer

PARTS = ("denoise", "products", "waterfall", "parity", "companions", "expansion", "pictures", "http", "diffusers")
PARITY_TIMEOUT_S = 400
START_TIMEOUT_S = 120
NEEDED_BY_TESTS = ("diffusers", "transformers", "pytest", "hypothesis")
NEEDED_BY_SERVER = ("granian", "starlette", "structlog", "prometheus_client", "openai", "zlib_ng")
PROMPT = "A T-Rex relaxing on a beach, lying on a sun lounger and wearing sunglasses."
CONNECTIONS = 4
WRITTEN_TOKENS = 150
READ_TOKENS = 250
"""The instruction, a short prompt in its turn and again in front of the answer."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bench:
    """What every part needs: the device, its matrix rate, and what is measured on it."""

    machine: Machine
    device: torch.device
    small: bool
    rate: float

    @property
    def shapes(self) -> "Shapes":
        """What is built."""
        from bench.random_engine import shapes

        return shapes(self.small)

    def engine(self, table: Any = None) -> "Engine":
        """A whole engine of random weights."""
        from bench.random_engine import random_engine

        return random_engine(self.device.type, self.small, table)

    def share(self, size: tuple[int, int], taken: float) -> str:
        """How much of the matrix rate some seconds of all steps are."""
        return f"{self.shapes.steps * flop(self.shapes.transformer, *size) / taken / self.rate:.0%}"

    def peak(self) -> float:
        """Most device memory since `forget`, in GiB."""
        return torch.cuda.max_memory_allocated(self.device) / GIB if self.device.type == "cuda" else 0.0

    def forget(self) -> None:
        """Give back what nobody holds, and count the peak anew."""
        gc.collect()  # recorded networks and writers hold themselves, and with them their memory
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


def parity(*selection: str) -> tuple[str, bool]:
    """Run the tests that need a device; their closing line, and whether some ran and all of those passed.

    Args:
        selection: pytest's arguments that choose the tests; default: those that compare with the reference
            or with eager arithmetic on the device.
    """
    missing = [name for name in NEEDED_BY_TESTS if importlib.util.find_spec(name) is None]
    if missing:
        return f"not run: {', '.join(missing)} not installed (put the wheels on PYTHONPATH)", False
    chosen = selection or ("-m", "gpu or kernels", "tests/parity", "tests/acceleration")
    # A library's deprecation is not what is asked here, and versions differ on such machines: -W default.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", *chosen]
    end = f"not done after {PARITY_TIMEOUT_S} s"
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PARITY_TIMEOUT_S)
        said, ended_well = done.stdout.decode(errors="replace").strip(), done.returncode == 0
        end = said.splitlines()[-1] if said else f"ended with {done.returncode}"
    except subprocess.TimeoutExpired as error:
        said, ended_well = (error.stdout or b"").decode(errors="replace"), False
    if not ended_well:
        print(said[-4000:])
    return end, ended_well and " passed" in end


def seconds(call: Callable[[], object], device: torch.device, rounds: int = 10, warm: int = 2) -> float:
    """Median seconds of a call after some that are not counted, each waited for."""
    taken = []
    for _ in range(rounds + warm):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        taken.append(time.perf_counter() - start)
    return median(taken[warm:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, side: int) -> float:
    """Floating-point operations a second of a bf16 product of two random square matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device)


@torch.inference_mode()
def denoising(pipeline: "Pipeline", size: tuple[int, int], bench: Bench) -> float:
    """Median seconds of all steps of one picture, sampler included, after those that are not counted."""
    caption = _caption(pipeline, bench.shapes.caption_tokens)

    def picture() -> None:
        *_, _last = pipeline.denoise(caption, *size, bench.shapes.steps, 1)

    return seconds(picture, bench.device, bench.shapes.rounds, bench.shapes.warm)


@torch.inference_mode()
def _caption(pipeline: "Pipeline", tokens: int) -> torch.Tensor:
    """A refined caption of random tokens."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, tokens, pipeline.transformer.config.cap_feat_dim, generator=generator)
    return pipeline.transformer.embed_caption(text.to(pipeline.device, pipeline.dtype))


def denoise_rows(bench: Bench) -> Iterator[Row]:
    """Each level at each size, as an engine here would draw them."""
    engine = bench.engine()
    print(engine.block(), flush=True)
    for name in ACCELERATIONS:
        level = engine.levels[name]
        for size in bench.shapes.sizes:
            bench.forget()
            taken = denoising(level.pipeline, size, bench)
            yield {"level": name, "drawn as": level.drawn, "passes": ", ".join(level.passes), "size": _of(size),
                   "left out": "; ".join(f"{one}: {reason}" for one, reason in level.left_out.items()),
                   "seconds": taken, "share of matrix rate": bench.share(size, taken),
                   "peak GiB": bench.peak()}  # fmt: skip


@torch.inference_mode()
def product_rows(bench: Bench) -> Iterator[Row]:
    """The wide products of a transformer block at the rows of the smallest and the largest size, captions included."""
    from zturbo.acceleration.fused import product, quantize
    from zturbo.acceleration.quantize import QuantizedLinear, Scheme

    shape = bench.shapes.transformer
    dim, hidden = shape.dim, shape.hidden_dim
    schemes: tuple[Scheme, ...] = ("int8", "fp8") if bench.machine.fp8 or bench.device.type == "cpu" else ("int8",)
    for width, height in dict.fromkeys((bench.shapes.sizes[0], bench.shapes.sizes[-1])):
        tokens = width * height // (bench.shapes.vae.factor * shape.patch_size) ** 2
        tokens += round_up(bench.shapes.caption_tokens)  # captions take slots of 32
        for inner, outer in ((dim, 3 * dim), (dim, dim), (dim, 2 * hidden), (hidden, dim)):
            rows = torch.randn(1, tokens, inner, device=bench.device, dtype=torch.bfloat16)
            weight = torch.randn(outer, inner, device=bench.device, dtype=torch.bfloat16) * inner**-0.5
            row: Row = {"size": _of((width, height)), "rows": tokens, "product": f"{inner} to {outer}"}
            taken = _stretch(partial(torch.nn.functional.linear, rows, weight), bench)
            row["bf16, TFLOP/s"] = 2 * tokens * inner * outer / taken / 1e12
            for scheme in schemes:
                layer = QuantizedLinear(inner, outer, scheme, bench.device)
                layer.load_rows(0, weight)
                short = _stretch(partial(product, layer, quantize(rows, scheme)), bench)
                row |= {f"{scheme}, TFLOP/s": row["bf16, TFLOP/s"] * taken / short, f"{scheme}, gain": taken / short}
            yield row


def _stretch(work: Callable[[], torch.Tensor], bench: Bench) -> float:
    """Seconds of some work: on a GPU one launched right after the other, as in a forward."""
    from zturbo.acceleration.cuda import device_seconds

    return device_seconds(work) if bench.device.type == "cuda" else seconds(work, bench.device, bench.shapes.rounds)


def waterfall_rows(bench: Bench) -> Iterator[Row]:
    """One pass after the other, whether or not a level would take it; the last rows are alternatives."""
    from bench.random_engine import StandIn
    from zturbo.acceleration import cuda, graphs
    from zturbo.acceleration.attention import BACKENDS, use_attention

    engine = bench.engine(dict.fromkeys(ACCELERATIONS, ()))
    chosen = next(one.attend for one in engine.pipeline.transformer.modules() if hasattr(one, "attend"))
    flash = next(one for one in BACKENDS if one.name == "flash")  # PyTorch's own choice can be the next rung's kernel

    def record(pipeline: "Pipeline") -> None:
        recorder = graphs.CudaRecorder(bench.device) if bench.device.type == "cuda" else StandIn()
        graphs.replay(pipeline.transformer, recorder)

    def attention(pipeline: "Pipeline") -> None:
        use_attention(pipeline.transformer, chosen)  # type: ignore[arg-type]

    use_attention(engine.pipeline.transformer, flash.make())
    rungs = [
        Rung(f"eager, {flash.words}", True),
        Rung(f"attention: {engine.plan.attention.partition('  ')[0]}", True, (attention,)),
        Rung("fused kernels", True, (attention, cuda.fuse_blocks)),
        Rung("CUDA graphs", True, (attention, cuda.fuse_blocks, record)),
        Rung("int8 products", False, (attention, cuda.to_int8, cuda.fuse_blocks, record)),
    ]
    if bench.machine.fp8 or bench.device.type == "cpu":
        rungs.append(Rung("fp8 products", False, (attention, cuda.to_fp8, cuda.fuse_blocks, record)))
    expected = _forward(engine.pipeline, bench)
    for rung in rungs:
        (one,) = climb(engine.pipeline, (rung,))
        distance = float((_forward(one.pipeline, bench) - expected).norm() / expected.norm())
        for size in (bench.shapes.sizes[0], bench.shapes.sizes[-1])[: len(bench.shapes.sizes)]:
            bench.forget()
            taken = denoising(one.pipeline, size, bench)
            yield {"pass": rung.name, "lossless": "yes" if rung.lossless else "no",
                   "distance of a forward": distance, "size": _of(size), "seconds": taken,
                   "share of matrix rate": bench.share(size, taken), "added GiB": one.added_bytes / GIB,
                   "peak GiB": bench.peak()}  # fmt: skip
        del one
        bench.forget()  # before the next rung is made


@torch.inference_mode()
def _forward(pipeline: "Pipeline", bench: Bench) -> torch.Tensor:
    """The first velocity at the smallest size, fp32."""
    step = next(
        pipeline.denoise(_caption(pipeline, bench.shapes.caption_tokens), *bench.shapes.sizes[0], bench.shapes.steps, 1)
    )
    return step.velocity.float()


def companion_rows(bench: Bench) -> Iterator[Row]:
    """Text encoder (100 tokens) and VAE decoder of the shapes, random weights."""
    shape, device = bench.shapes, bench.device
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        encoder = Qwen3(shape.text_encoder).eval().requires_grad_(False)
        decoder = Decoder(shape.vae).eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.set_default_dtype(torch.float32)
    width, height = shape.sizes[-1]
    ids = torch.randint(0, 1000, (1, shape.caption_tokens), device=device)
    size = (1, shape.vae.latent_channels, height // shape.vae.factor, width // shape.vae.factor)
    latents = torch.randn(size, device=device, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        text = seconds(lambda: encoder.encode(ids), device, shape.rounds)
        yield {
            "what": "text encoder",
            "size": f"{shape.caption_tokens} tokens",
            "seconds": text,
            "peak GiB": bench.peak(),
        }
        bench.forget()
        picture = seconds(lambda: decoder(latents), device, shape.rounds)
        yield {"what": "vae decoder", "size": _of((width, height)), "seconds": picture, "peak GiB": bench.peak()}


def expansion_rows(bench: Bench) -> Iterator[Row]:
    """An expansion's tokens by random weights: the growing cache, the recorded step's own launches, its graph.

    The bytes a second count the weights, once for each token: what bounds the last row is the memory.
    """
    from bench.random_engine import StandIn
    from zturbo.acceleration.decoding import Decoder
    from zturbo.acceleration.graphs import CudaRecorder
    from zturbo.engine.writing import Writer
    from zturbo.expansion.recipes import Instructed

    pipeline = bench.engine(dict.fromkeys(ACCELERATIONS, ())).pipeline
    nbytes = sum(parameter.nbytes for parameter in pipeline.text_encoder.parameters())
    recorder_here = CudaRecorder(bench.device) if bench.device.type == "cuda" else StandIn()
    recorders = {"growing cache": None, "fixed cache, launch by launch": Refusing(),
                 "fixed cache, CUDA graph": recorder_here}  # fmt: skip
    read = torch.randint(pipeline.tokenizer.size, (READ_TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    for name, recorder in recorders.items():
        writer = Writer(pipeline, Instructed(), "random")
        writer.stops.clear()  # random weights would stop anywhere
        if recorder is not None:
            writer.record(recorder)
        bench.forget()
        first = _writing(writer, read, 1, bench)
        taken = _writing(writer, read, WRITTEN_TOKENS, bench)
        token = (taken - first) / (WRITTEN_TOKENS - 1)
        graphs = len(writer.decoder) if isinstance(writer.decoder, Decoder) else 0
        yield {"what": name, "graphs": graphs, "seconds": taken, "tokens": WRITTEN_TOKENS,
               "seconds to the first": first, "ms a token": 1000 * token, "GB/s": nbytes / token / 1e9,
               "peak GiB": bench.peak()}  # fmt: skip


def _writing(writer: "Writer", read: list[int], tokens: int, bench: Bench) -> float:
    """Median seconds of writing so many tokens."""
    chances = torch.rand(tokens, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tolist()

    def write() -> None:
        (row,) = writer.write(read, chances, lambda: False)
        assert len(row) == tokens

    return seconds(write, bench.device, bench.shapes.rounds)


class Refusing:
    """A recorder that leaves steps to be launched one operation after the other."""

    def record(self, _work: object) -> NoReturn:
        """Refuse."""
        raise RuntimeError("it is launched on purpose")


def picture_rows(bench: Bench) -> Iterator[Row]:
    """Prompt to pixels in this process, another prompt each time; what the stages take."""
    from zturbo.acceleration.levels import LEVELS

    engine = bench.engine(LEVELS)
    for level in ("none", "high"):
        for size in (bench.shapes.sizes[0], bench.shapes.sizes[-1])[: len(bench.shapes.sizes)]:
            runs = [
                _draw(engine, level, size, bench.shapes.steps, number)
                for number in range(bench.shapes.rounds + bench.shapes.warm)
            ]
            middle = sorted(runs[bench.shapes.warm :], key=lambda timings: timings["total"])[
                len(runs[bench.shapes.warm :]) // 2
            ]
            yield {"level": level, "size": _of(size), "seconds": middle["total"], "encode": middle["encode"],
                   "denoise": middle["denoise"], "decode": middle["decode"],
                   "pictures a second": 1 / middle["total"]}  # fmt: skip


def _draw(engine: "Engine", level: str, size: tuple[int, int], steps: int, number: int) -> dict[str, float]:
    values = {
        "prompt": f"{PROMPT} {_of(size)} {number}",  # another one for each: captions are kept
        "size": _of(size),
        "steps": steps,
        "seed": number + 1,
        "acceleration": level,
    }
    *_, last = engine.draw(GenerationParams.parse(values))
    assert last.timings is not None
    return dict(last.timings)


def http_rows(bench: Bench) -> Iterator[Row]:
    """A client's seconds for one picture, and pictures a second of several connections: keys, records and files on.

    The prompt is the same, and its caption kept: the text encoder's time is not among them.
    """
    from bench.server import measure
    from tests.api.server_process import serving

    small = {"BENCH_SMALL": "1"} if bench.small else {}
    levels = ("none",) if bench.small else ("none", "high")
    for level in levels:
        with (
            tempfile.TemporaryDirectory() as folder,
            _environment(small),
            serving(
                Path(folder),
                start=False,
                module="bench.random_engine",
                device=bench.device.type,
                acceleration=level,
                queue_limit=1000,
            ) as server,
        ):
            _wait_until_ready(server)
            for size in (bench.shapes.sizes[0], bench.shapes.sizes[-1])[: len(bench.shapes.sizes)]:
                body = {"model": "alibaba/z-image-turbo", "prompt": PROMPT, "acceleration": level,
                        "image_size": {"width": size[0], "height": size[1]}, "num_inference_steps": bench.shapes.steps,
                        "response_format": "b64_json"}  # fmt: skip
                asyncio.run(measure(server.port, body, 1, 0.1))
                _, alone = asyncio.run(measure(server.port, body, 1, 1 if bench.small else 8))
                rate, _ = asyncio.run(measure(server.port, body, CONNECTIONS, 1 if bench.small else 8))
                yield {"level": level, "size": _of(size), "seconds p50": alone[len(alone) // 2],
                       "seconds p95": alone[math.ceil(len(alone) * 0.95) - 1],
                       f"pictures a second, {CONNECTIONS} at once": rate, "requests": len(alone)}  # fmt: skip


class _environment:  # noqa: N801  # used like a function
    """Variables that a child process shall find."""

    def __init__(self, variables: dict[str, str]) -> None:
        self._variables = variables

    def __enter__(self) -> None:
        os.environ.update(self._variables)

    def __exit__(self, *_: object) -> None:
        for name in self._variables:
            del os.environ[name]


def _wait_until_ready(server: Any) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while (reason := _not_ready(server)) is not None:
        assert "could not be loaded" not in reason, reason
        assert server.process.poll() is None, f"the server ended\n{server.log.read_text()[-4000:]}"
        assert time.monotonic() < deadline, f"the server did not start\n{server.log.read_text()[-4000:]}"
        time.sleep(0.2)


def _not_ready(server: Any) -> str | None:
    """Why the server does not draw yet, or None."""
    try:
        reply = server.ask("GET", "/readyz")
    except (OSError, HTTPException):
        return "nobody answers"
    return None if reply.status == 200 else reply.body.decode(errors="replace")


def diffusers_rows(bench: Bench) -> Iterator[Row]:
    """The same forwards through diffusers' own transformer, eager, then with its blocks compiled."""
    from diffusers import ZImageTransformer2DModel

    shape = bench.shapes
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(bench.device):
        model = ZImageTransformer2DModel(**diffusers_config(shape.transformer)).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    for form in ("eager", "blocks compiled"):
        if form != "eager":
            model.compile_repeated_blocks(dynamic=False)
        for size in (shape.sizes[0], shape.sizes[-1])[: len(shape.sizes)]:
            bench.forget()
            taken = shape.steps * _their_seconds(model, size, bench)
            yield {"what": f"diffusers, {form}", "size": _of(size), "seconds": taken,
                   "share of matrix rate": bench.share(size, taken), "peak GiB": bench.peak()}  # fmt: skip


def _their_seconds(model: Any, size: tuple[int, int], bench: Bench) -> float:
    """Seconds of one of their forwards."""
    shape, device, dtype = bench.shapes, bench.device, torch.bfloat16
    side = shape.vae.factor
    latents = torch.randn(
        shape.transformer.in_channels, 1, size[1] // side, size[0] // side, device=device, dtype=dtype
    )
    caption = torch.randn(shape.caption_tokens, shape.transformer.cap_feat_dim, device=device, dtype=dtype)
    time_now = torch.tensor([0.3], device=device)

    @torch.no_grad()  # compiled code refuses tensors of inference mode in some versions
    def forward() -> None:
        model([latents], time_now, [caption], return_dict=False)

    return seconds(forward, device, shape.rounds)


def diffusers_config(shape: TransformerConfig) -> dict[str, Any]:
    """The published members with a shape's own in their place."""
    changed = {"dim": shape.dim, "n_heads": shape.n_heads, "n_kv_heads": shape.n_heads, "n_layers": shape.n_layers,
               "n_refiner_layers": shape.n_refiner_layers}  # fmt: skip
    members = {name: value for name, value in published.TRANSFORMER.items() if not name.startswith("_")}
    return members | changed | {"cap_feat_dim": shape.cap_feat_dim}


def _of(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


ROWS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "denoise": denoise_rows,
    "products": product_rows,
    "waterfall": waterfall_rows,
    "companions": companion_rows,
    "expansion": expansion_rows,
    "pictures": picture_rows,
    "http": http_rows,
    "diffusers": diffusers_rows,
}
CONDITIONS = {
    "expansion": "tokens of the language model",
    "products": "single products",
    "companions": "text encoder and VAE alone",
    "http": "requests of four clients",
}
"""What a part measures, where that is not the drawing of single pictures."""
NEEDS: dict[str, tuple[str, ...]] = {"http": NEEDED_BY_SERVER, "diffusers": ("diffusers",)}


def run(part: str, bench: Bench) -> bool:
    """One part: its rows are printed and written as they come; False where it failed."""
    bench.forget()
    if missing := [name for name in NEEDS.get(part, ()) if importlib.util.find_spec(name) is None]:
        print(f"{part}: not run, {', '.join(missing)} not installed (put the wheels on PYTHONPATH)", flush=True)
        return False
    name = f"gpu-{part}{'-small' if bench.small else ''}"
    what = CONDITIONS.get(part, f"{bench.shapes.steps} forwards, one picture at a time")
    note = f"{part}: {what}, random bf16 weights; matrix rate {bench.rate / 1e12:.1f} TFLOP/s"
    rows: list[Row] = []
    failure = ""
    try:
        for row in ROWS[part](bench):
            print(f"{part}: {row}", flush=True)
            rows.append(row)
            keep(name, bench.machine, rows, note)
    except Exception as error:  # what was measured before is kept, and the next part still has its turn
        failure = f"; ended early: {type(error).__name__}: {error}"
        print(f"{part}{failure}", flush=True)
    if rows:
        publish(name, bench.machine, rows, note + failure)
    return not failure


def run_apart(part: str, arguments: argparse.Namespace) -> bool:
    """One part in a process of its own; False where it failed, in whatever way."""
    command = [sys.executable, "-m", "bench.gpu", "--part", part, "--device", arguments.device]
    return subprocess.run([*command, *(["--small"] if arguments.small else [])]).returncode == 0


def run_here(part: str, arguments: argparse.Namespace) -> bool:
    """One part in this process; False where it failed."""
    if arguments.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
    if part == "parity":
        line, passed = parity()
        print(f"parity: {line}", flush=True)
        return passed
    machine, device = detect(arguments.device), torch.device(arguments.device)
    bench = Bench(machine, device, arguments.small, matrix_rate(device, 256 if arguments.small else 8192))
    print(f"matrix rate: {bench.rate / 1e12:.1f} TFLOP/s", flush=True)
    return run(part, bench)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be repeated")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    parts = arguments.part or PARTS
    run_one = run_here if len(parts) == 1 else run_apart
    passed = [run_one(part, arguments) for part in parts]
    if not all(passed):
        sys.exit(1)


if __name__ == "__main__":
    main()
