"""The recipe end to end at its tiniest, and the parts whose mistakes no training would show."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import cast

import pytest

pytest.importorskip("cv2", reason="the training recipe draws with OpenCV (opencv-python-headless)")

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from nano import (
    decoder,
    distill,
    export,
    judge,
    language,
    latents,
    mean,
    moments,
    refit,
    sheet,
    tokenizer,
    training,
    transformer,
    vae,
)
from nano.adopt import adopt, adopt_run
from nano.captions import EXPAND_INSTRUCTION, STAGES, continued, expanded_caption, short_caption
from nano.config import CPU, GPU, ONWARD, PROFILES, TINY, Distillation, Finish, Folders, Profile, every_size
from nano.drawing import Crops, stream
from nano.evaluate import paraphrases, plain_prompt, unseen, variety
from nano.judge import Answered, Verdict, answers, compare
from nano.muon import Muon
from nano.picture import Picture, draw
from nano.sheet import Painter, load_painter
from nano.world import LABEL, Scene, sample_scene
from zturbo.engine.sampling import sigmas
from zturbo.engine.tokenizer import chat_prompt
from zturbo.models.attention import sdpa
from zturbo.models.transformer import ZImageTransformer, patchify
from zturbo.models.vae import AutoencoderKL

PLAN = cast(Distillation, TINY.distillation)
FINISH = cast(Finish, TINY.finish)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A whole tiny training."""
    folders = Folders(tmp_path_factory.mktemp("run"))
    torch.manual_seed(0)
    tokenizer.train(TINY, folders, 400)
    language.train(TINY, folders, minutes=1)
    vae.train(TINY, folders, minutes=1)
    latents.fill_all(TINY, folders)
    transformer.train(TINY, folders, minutes=1, last_stage=99)
    return folders


def _copied(run: Folders, folder: Path) -> Folders:
    for one in run.root.iterdir():
        (folder / one.name).symlink_to(one)
    return Folders(folder)


def test_distils(run: Folders, tmp_path: Path) -> None:
    distill.distill(TINY, _copied(run, tmp_path), minutes=1)
    before, after = (torch.load(tmp_path / name, weights_only=True) for name in ("teacher.pt", "transformer.pt"))
    assert after["distilled"]
    name = "all_final_layer.2-1.linear.bias"
    assert not torch.equal(before["average"][name], after["average"][name])
    student = torch.load(tmp_path / "distillation.pt", weights_only=True)
    assert student["step"] == PLAN.steps
    between = torch.lerp(before["average"][name], student["average"][name], PLAN.share)
    assert torch.allclose(after["average"][name], between)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")}
    transformer.train(TINY, Folders(tmp_path), minutes=1, last_stage=99)  # `run.sh` once more
    distill.distill(TINY, Folders(tmp_path), minutes=1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")} == written


def test_distils_the_guidance_of_the_empty_prompt(run: Folders, tmp_path: Path) -> None:
    plan = replace(PLAN, weaker_self=False)
    distill.distill(replace(TINY, distillation=plan), _copied(run, tmp_path), minutes=1)
    assert torch.load(tmp_path / "transformer.pt", weights_only=True)["distilled"]


def test_a_distillation_goes_on_from_its_checkpoint(run: Folders, tmp_path: Path) -> None:
    folders = _copied(run, tmp_path)
    trained, weak = torch.load(run.transformer, weights_only=True), transformer.stage_file(folders, 0)
    first = distill.Distiller(TINY, folders, 1, PLAN, trained, weak)
    first.run.tick(loss=first.step(latents.Cache.load(latents.bucket_folder(folders, 256, 256)), 0.5))
    first.save()
    again = distill.Distiller(TINY, folders, 1, PLAN, trained, weak)
    assert again.run.step == again.average.steps == 1
    pairs = zip(first.student.parameters(), again.student.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    other = {**trained, "average": {name: weight + 1 for name, weight in trained["average"].items()}}
    since = distill.Distiller(TINY, folders, 1, PLAN, other, weak)
    assert since.run.step == 0, "what was distilled from weights that have been trained on is out of date"


def test_a_step_has_as_many_pictures_as_its_tokens_allow(run: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, batch = [], latents.Cache.batch

    def counted(cache: latents.Cache, count: int, generator: torch.Generator) -> latents.Batch:
        counts.append(count)
        return batch(cache, count, generator)

    monkeypatch.setattr(latents.Cache, "batch", counted)
    cache = latents.Cache.load(latents.bucket_folder(run, 256, 256))
    trained, weak = torch.load(run.transformer, weights_only=True), transformer.stage_file(run, 0)
    distill.Distiller(TINY, run, 1, PLAN, trained, weak).step(cache, 0.5)
    transformer.Trainer(TINY, run, minutes=1).step(cache, TINY.stages[-1])
    assert counts == [PLAN.tokens_per_batch // 64, TINY.stages[-1].tokens_per_batch // 64]


@pytest.mark.parametrize(("flags", "asked"), [((), True), (("--no-compile",), False), (("--compile",), True)])
def test_the_command_line_overrules_the_profile_on_compiling(flags: tuple[str, ...], asked: bool) -> None:
    parser = training.arguments("a test")
    transformer.compile_flag(parser)
    assert transformer.asked_to_compile(parser.parse_args(flags), GPU) is asked
    assert transformer.asked_to_compile(parser.parse_args(flags), CPU) is (flags == ("--compile",))


def test_gradients_of_a_shadow_are_handed_back_and_forgotten() -> None:
    master = torch.nn.Linear(2, 3)
    shadow = training.Shadow(master)
    shadow.refresh()
    (shadow.model.weight @ torch.ones(2, 1, dtype=shadow.model.weight.dtype)).sum().backward()
    master.bias.grad = torch.ones(3)  # of a step before, in which it took part
    shadow.hand_back()
    assert master.weight.grad is not None
    assert torch.equal(master.weight.grad, torch.ones(3, 2))
    assert master.weight.grad.dtype == torch.float32
    assert master.bias.grad is None
    assert shadow.model.weight.grad is None


def test_a_missing_weaker_self_is_named(run: Folders, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt: no checkpoint of a weaker transformer.*--weak"):
        distill.distill(TINY, _copied(run, tmp_path), minutes=1, weak=tmp_path / "nowhere.pt")


def _constant(value: float) -> ZImageTransformer:
    """Draws the same velocity everywhere."""
    model = transformer.build(TINY)
    with torch.no_grad():
        for name, weight in model.all_final_layer.named_parameters():
            weight.fill_(value if name == "2-1.linear.bias" else 0.0)
    return model


def test_a_teacher_goes_beyond_its_weaker_self(run: Folders) -> None:
    """2 + 0.5 (2 - 1) in every substep."""
    words, words_tokenizer = language.load(run, TINY)
    words.to(training.working_dtype())
    teacher = distill.Teacher(_constant(2.0), _constant(1.0), 0.5, transformer.empty_prompt(words_tokenizer))
    ids, seen = torch.ones(2, 4, dtype=torch.int64), torch.zeros(2, TINY.vae.latents, 4, 4)
    with torch.no_grad():
        guided = teacher.asked(ids, words)
        path = distill.teacher_path(guided, seen, torch.tensor([1.0, 0.5]), torch.tensor([0.9, 0.3]), 3)
    assert torch.allclose(path, torch.full_like(path, 2.5), atol=1e-6)


def test_a_path_is_the_line_to_where_its_steps_arrive() -> None:
    """dx/ds = s from 1 to 0.5 in two Euler steps: the mean of the velocities at 1 and 0.75."""
    start, end = torch.tensor([1.0]), torch.tensor([0.5])
    path = distill.teacher_path(lambda x, level: level.view(-1, 1, 1, 1) * torch.ones_like(x), torch.zeros(1, 1, 2, 2),
                                start, end, 2)  # fmt: skip
    assert torch.allclose(path, torch.full_like(path, 0.875))


def test_distilled_steps_are_those_of_the_schedule() -> None:
    start, end = distill.steps_of(4000, torch.Generator().manual_seed(0))
    levels = sigmas(8, 3.0)
    on = (start.unsqueeze(1) == levels[:-1]).any(1)
    assert 0.6 < float(on.float().mean()) < 0.9
    nxt = dict(zip(levels[:-1].tolist(), levels[1:].tolist(), strict=True))
    assert all(abs(nxt[one] - other) < 1e-6 for one, other in zip(start[on].tolist(), end[on].tolist(), strict=True))
    assert bool((start > end).all())


def test_draws_a_picture(run: Folders) -> None:
    picture = load_painter(TINY, run)("a red car", 320, 256, seed=1, steps=2)
    assert picture.shape == (256, 320, 3)
    assert picture.dtype == np.uint8


def test_a_page_of_sizes_keeps_their_ratios(run: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "EXTREMES", ((256, 128), (128, 128)))
    page = cv2.imread(str(sheet.save_sizes(load_painter(TINY, run), tmp_path / "sizes.png", cell=64)))
    assert page is not None
    assert page.shape == (64, 256, 3)
    assert (page[:16, :64] == 255).all()  # above a picture twice as wide as high
    assert page[16:48, :64].std() > 0
    assert page[:, 64:128].std() > 0


def test_goes_on_from_its_checkpoint(run: Folders) -> None:
    trainer = transformer.Trainer(TINY, run, minutes=1)
    assert trainer.run.step == TINY.stages[-1].steps
    assert trainer.average.steps > 0


def test_export_is_read_by_the_engine(run: Folders, tmp_path: Path) -> None:
    export.export(TINY, run, tmp_path)
    for part in ("transformer", "text_encoder", "vae"):
        assert (tmp_path / part / "config.json").is_file()
    assert all(path.stat().st_size <= export.FILE_LIMIT_BYTES for path in tmp_path.rglob("*.safetensors"))


def test_large_components_are_cut_into_shards() -> None:
    tensors = {str(i): torch.zeros(100) for i in range(5)}
    parts = export.shards(tensors, limit_bytes=900)
    assert [len(part) for part in parts] == [2, 2, 1]


def test_the_tokenizer_keeps_the_chat_marks_whole(run: Folders) -> None:
    ids = tokenizer.load(run).encode(chat_prompt(EXPAND_INSTRUCTION + "a cat")).tokens
    assert ids[0] == "<|im_start|>"
    assert ids.count("<|im_end|>") == 1
    assert tokenizer.load(run).decode(tokenizer.load(run).encode("Größe 火").ids) == "Größe 火"


def test_the_encoder_computes_moments() -> None:
    """Latents are exactly linear in the block's polynomial moments."""
    torch.manual_seed(0)
    images = Crops(TINY.world, 64, 4)(np.random.default_rng(0)).float() / 127.5 - 1
    model = vae.build(TINY.vae)
    moments.write_encoder(model, images)
    model = model.cpu()
    weight, bias = moments.as_convolution(model)
    with torch.no_grad():
        slow, fast = model.encode(images)[0], torch.nn.functional.conv2d(images, weight, bias, stride=16)
    assert float((slow - fast).abs().max()) < 0.02 * float(slow.std())
    assert float(slow.mean(dim=(0, 2, 3)).abs().max()) < 0.05
    encode = latents.Encoder.of(model, scaling=2.0, shift=0.25)  # what drawing processes do, from bytes
    drawn = encode(((images + 1) * 127.5).round().to(torch.uint8)).float()
    assert float((drawn - (slow - 0.25) * 2.0).abs().max()) < 0.05 * float(slow.std())


def test_a_process_that_has_drawn_can_have_drawing_processes() -> None:
    assert cv2.getNumThreads() == 1
    draw(sample_scene(TINY.world, np.random.default_rng(0)), 2048, 2048)
    assert next(stream(Crops(TINY.world, 64), 1, 1, 0)).shape == (1, 2, 3, 64, 64)


def test_training_takes_the_sizes_that_are_drawn_already(
    run: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders, stage = Folders(tmp_path), TINY.stages[0]
    with pytest.raises(FileNotFoundError, match="draw the pictures first"):
        latents.caches(folders, stage.buckets)
    latents.bucket_folder(folders, 320, 256).mkdir(parents=True)  # begun, and nothing in it yet
    latents.bucket_folder(folders, 256, 256).symlink_to(latents.bucket_folder(run, 256, 256))
    sizes, shares = latents.caches(folders, stage.buckets)
    assert capsys.readouterr().out == "not drawn yet, left out: 320x256\n"
    assert [cache.tokens for cache in sizes] == [64]
    assert shares.tolist() == [stage.buckets[0][2]]


def test_the_minutes_are_those_of_all_stages(run: Folders, tmp_path: Path) -> None:
    folders = _copied(run, tmp_path)
    (tmp_path / "transformer.pt").unlink()
    trainer = transformer.Trainer(TINY, folders, minutes=10)
    given = [trainer.run.minutes]
    assert trainer.next_stage()
    given.append(trainer.run.minutes)
    assert given == [6.0, 4.0]  # three steps and two


def _autoencoder(seed: int) -> AutoencoderKL:
    """Its encoder written down from samples of its own; a decoder of random weights."""
    torch.manual_seed(seed)
    model = vae.build(TINY.vae)
    crops, rng = Crops(TINY.world, 64, 4), np.random.default_rng(seed)
    moments.write_encoder(model, torch.cat([crops(rng) for _ in range(8)]).float() / 127.5 - 1)
    for block in model.decoder.modules():
        if isinstance(block, torch.nn.Conv2d):
            torch.nn.init.normal_(block.weight, std=0.05)
    return model.cpu().eval()


@torch.no_grad()
def test_a_decoder_of_another_run_reads_the_own_encoder() -> None:
    own, other = _autoencoder(1), _autoencoder(2)
    images = Crops(TINY.world, 256, 2)(np.random.default_rng(3)).float() / 127.5 - 1
    means, expected = own.encode(images)[0], other.decode(other.encode(images)[0])
    before = own.decode(means)
    refit.refit(own, other)
    inside = (..., slice(96, 160), slice(96, 160))  # the border's zeros are other numbers in other scales
    spread = float(expected[inside].std())
    assert float((own.decode(means)[inside] - expected[inside]).abs().mean()) < 0.05 * spread
    assert float((before[inside] - expected[inside]).abs().mean()) > 0.5 * spread


def test_only_a_decoder_of_the_same_moments_is_taken(run: Folders, tmp_path: Path) -> None:
    folders = _copied(run, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt: no autoencoder"):
        refit.refit_run(TINY, folders, tmp_path / "nowhere.pt")
    state = torch.load(run.vae, weights_only=True)
    colours = state["average"]["encoder.conv_in.weight"]
    colours[:2] = colours[:2].flip(0)  # brightness and a colour in each other's place
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="the encoders differ by"):
        refit.refit_run(TINY, folders, tmp_path / "other.pt")


def test_a_run_with_another_decoder_goes_on(run: Folders, tmp_path: Path) -> None:
    folders = _copied(run, tmp_path)
    before = torch.load(run.vae, weights_only=True)
    folders.vae.unlink()
    torch.save(before, folders.vae)
    folders.decoder.touch()  # of a decoder that was finished before
    torch.save(before | {"finished": True}, folders.vae)
    refit.refit_run(TINY, folders, run.vae)
    assert not folders.decoder.exists()
    after = torch.load(folders.vae, weights_only=True)
    assert after["scaling"] == before["scaling"]
    for name, weight in before["average"].items():
        assert torch.allclose(after["average"][name], weight, rtol=1e-3, atol=1e-4), name
    vae.train(replace(TINY, vae_steps=before["step"] + 1), folders, minutes=1)
    assert torch.load(folders.vae, weights_only=True)["step"] == before["step"] + 1


def test_learning_to_write_changes_no_state_that_a_picture_is_drawn_from(run: Folders, tmp_path: Path) -> None:
    folders = _copied(run, tmp_path)
    before, words = language.load(folders, TINY)
    language.train_writing(TINY, folders, steps=2, minutes=1)
    after, _ = language.load(folders, TINY)
    ids = torch.tensor([words.encode(chat_prompt("a red cat")).ids])
    assert torch.equal(before.encode(ids), after.encode(ids))
    assert not torch.equal(before(ids), after(ids))


def test_an_expansion_goes_on_from_its_prompt() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        asked, answer = language.expansion(TINY.world, rng).split("<|im_end|>")[:2]
        prompt = asked.split(EXPAND_INSTRUCTION)[1].rstrip(".")
        said = answer.split("assistant\n")[1]
        assert said.startswith(f"{prompt[0].upper()}{prompt[1:]}. ")
        assert "The scene is " in said


def test_the_decoder_learns_what_the_transformer_draws(run: Folders, tmp_path: Path) -> None:
    decoder.finish(TINY, _copied(run, tmp_path), minutes=1)
    before, after = (torch.load(tmp_path / name, weights_only=True) for name in ("first-vae.pt", "vae.pt"))
    assert after["finished"]
    assert (after["scaling"], after["shift"]) == (before["scaling"], before["shift"])
    changed = {name for name, weight in before["average"].items() if not torch.equal(weight, after["average"][name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")}
    vae.train(TINY, Folders(tmp_path), minutes=1)  # `run.sh` once more
    decoder.finish(TINY, Folders(tmp_path), minutes=1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")} == written


def test_a_decoder_is_finished_again_for_another_transformer(run: Folders, tmp_path: Path) -> None:
    folders = _copied(run, tmp_path)
    decoder.finish(TINY, folders, minutes=1)
    state = torch.load(run.transformer, weights_only=True)
    folders.transformer.unlink()  # a link to the run's
    torch.save(
        {**state, "average": {name: 1.01 * weight for name, weight in state["average"].items()}}, folders.transformer
    )
    assert decoder.Finisher(TINY, folders, 1, FINISH).run.step == 0
    finished = torch.load(folders.vae, weights_only=True)["finished"]
    decoder.finish(TINY, folders, minutes=1)
    assert torch.load(folders.vae, weights_only=True)["finished"] != finished


def test_a_finished_decoder_is_what_is_trained_on(run: Folders, tmp_path: Path) -> None:
    folders = _copied(run, tmp_path)
    decoder.finish(TINY, folders, minutes=1)
    state = torch.load(folders.vae, weights_only=True)
    assert all(torch.equal(state["model"][name], weight) for name, weight in state["average"].items())
    adopted = Folders(tmp_path / "adopted")
    adopted.root.mkdir()
    adopt_run(adopted, folders)
    vae.train(replace(TINY, vae_steps=1), adopted, minutes=1)
    again = torch.load(adopted.vae, weights_only=True)["average"]
    assert all(torch.allclose(again[name], weight, atol=0.1) for name, weight in state["average"].items())


def test_a_mean_of_runs_is_their_weights_by_shares(run: Folders, tmp_path: Path) -> None:
    state = torch.load(run.transformer, weights_only=True)
    other = state | {"average": {name: weight + 1 for name, weight in state["average"].items()}}
    torch.save(other, tmp_path / "other.pt")
    folders = Folders(tmp_path)
    mean.mix(folders, [(run.transformer, 0.25), (tmp_path / "other.pt", 0.75)])
    mixed = torch.load(folders.transformer, weights_only=True)
    for name, weight in state["average"].items():
        assert torch.allclose(mixed["average"][name], weight + 0.75, atol=1e-5)
    with pytest.raises(ValueError, match="1 in all"):
        mean.mix(folders, [(run.transformer, 0.5), (tmp_path / "other.pt", 0.4)])
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        mean.mix(folders, [(tmp_path / "absent.pt", 1.0)])


def test_a_tokenizer_that_is_there_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was trained since reads its numbers."""
    (tmp_path / "tokenizer.json").write_text("its numbers")
    monkeypatch.setattr("sys.argv", ["tokenizer", "--profile", "tiny", "--folder", str(tmp_path)])
    tokenizer.main()
    assert (tmp_path / "tokenizer.json").read_text() == "its numbers"


def test_the_command_line_chooses_the_seed_and_no_time_at_all() -> None:
    parser = training.arguments("try")
    profile, _ = training.opened(parser.parse_args(["--profile", "tiny", "--seed", "7", "--folder", "/tmp"]))
    assert (profile.seed, profile.name) == (7, "tiny")
    assert training.Run("try", 10, minutes=0).done


def test_no_night_is_told_as_a_day() -> None:
    rng = np.random.default_rng(0)
    for time, weather in product(("night", "sunset"), ("rain", "fog")):
        for _ in range(100):
            scene = replace(sample_scene(CPU.world, rng), setting="forest", time=time, weather=weather)
            text = expanded_caption(scene, rng).lower()
            assert time != "night" or not re.search(r"\bday\b", text), text


def test_a_finish_goes_on_from_its_checkpoint(run: Folders, tmp_path: Path) -> None:
    folders = _copied(run, tmp_path)
    first = decoder.Finisher(TINY, folders, 1, FINISH)
    pixels, edges = first.step()
    first.run.tick(l1=pixels, edges=edges)
    first.save()
    again = decoder.Finisher(TINY, folders, 1, FINISH)
    assert again.run.step == again.average.steps == 1
    pairs = zip(first.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_finish_without_a_transformer_says_what_to_train(run: Folders, tmp_path: Path) -> None:
    folders = _copied(run, tmp_path)
    folders.transformer.unlink()
    with pytest.raises(FileNotFoundError, match=r"transformer\.pt: train the transformer first"):
        decoder.finish(TINY, folders, minutes=1)


def test_crops_of_pictures_and_of_their_latents_show_the_same(run: Folders) -> None:
    model, scaling, shift = vae.load(run, TINY)
    encode, words = latents.Encoder.of(model, scaling, shift), tokenizer.load(run)
    drawn = decoder.Scenes(TINY.world, words, drawings=2, crops=3, crop=64)(np.random.default_rng(1))
    whole, squares = encode(drawn.images), decoder.cut(drawn.images, drawn.corners, 4, decoder.BLOCK)
    assert squares.shape == (6, 3, 64, 64)
    assert torch.equal(encode(squares), decoder.cut(whole, drawn.corners, 4))


def test_the_later_the_transformer_takes_over_the_closer_it_stays(run: Folders) -> None:
    model, scaling, shift = vae.load(run, TINY)
    encode, painter = latents.Encoder.of(model, scaling, shift), load_painter(TINY, run)
    drawn = decoder.Scenes(TINY.world, painter.tokenizer, drawings=2, crops=1, crop=64)(np.random.default_rng(1))
    whole = encode(drawn.images).float()
    apart = [
        float((decoder.Redrawer(painter, encode, 3)(drawn.images, drawn.ids, first) - whole).norm())
        for first in decoder.FIRST_STEPS
    ]
    assert apart[0] == 0.0
    assert apart == sorted(apart)


def test_the_judge_is_measured_on_drawings_of_the_size_that_it_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def noted(scene: Scene, width: int, height: int, loose: bool) -> Picture:
        drawn.append((width, height, loose))
        return draw(scene, width, height, loose)

    monkeypatch.setattr(judge, "draw", noted)
    untrained, side = judge.Judge(TINY.world).to(training.device()).eval(), judge.ASKED_SIZE
    for loose in (False, True):
        judge.judge_accuracy(untrained, TINY, 2, loose)
        assert set(drawn) == {(side, side, loose)}
        drawn.clear()
    rng, learn = np.random.default_rng(0), Answered(TINY.world)
    assert all(learn(rng)[0].shape == (3, judge.JUDGE_SIZE, judge.JUDGE_SIZE) for _ in range(16))
    assert {width for width, *_ in drawn} == set(judge.DRAWN_SIZES)
    assert {loose for *_, loose in drawn} == {True, False}, "of things on the grid alone it learns places by heart"


def test_the_judge_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    folders, short = Folders(tmp_path), replace(TINY, workers=0, judge_steps=2)
    judge.train_judge(short, folders, minutes=1)
    first = torch.load(tmp_path / "judge.pt", weights_only=True)
    judge.train_judge(replace(short, judge_steps=4), folders, minutes=1)
    then = torch.load(tmp_path / "judge.pt", weights_only=True)
    assert (first["step"], then["step"]) == (2, 4)
    done = judge.train_judge(replace(short, judge_steps=4), folders, minutes=1).state_dict()
    assert all(torch.equal(weight, then["average"][name].to(weight.device)) for name, weight in done.items())


def test_muon_turns_convolutions_in_place() -> None:
    layer = torch.nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizers = training.Optimizers([("blocks.weight", layer.weight), ("bias", layer.bias)], muon=("blocks",), lr=1e-3)
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 4, 5, 5)).sum().backward()
    optimizers.step(1.0)
    assert not torch.equal(before, layer.weight)
    assert layer.weight.grad is None


@pytest.mark.parametrize("coarse", [True, False])
def test_noise_levels_are_mostly_those_that_eight_steps_visit(coarse: bool) -> None:
    sigma = transformer.noise_levels(4000, coarse, torch.Generator().manual_seed(0))
    limit = transformer.COARSE
    assert bool(((sigma >= limit) == coarse).all())
    assert float(sigma.min()) > 0.0
    assert float(sigma.max()) <= 1.0
    visited = sigmas(8, sheet.SHIFT)[:-1]
    share = torch.isclose(sigma[:, None], visited).any(1).float().mean()
    assert float(share) == pytest.approx(1 - transformer.ANYWHERE, abs=0.03)


def test_some_tokens_are_judged_as_they_are_among_all() -> None:
    """A picture whose tokens are all kept, in another order, is the picture."""
    torch.manual_seed(0)
    trainee = transformer.Trainee(transformer.build(TINY))
    for parameter in trainee.parameters():  # an untrained final layer would answer zero
        parameter.data.normal_(std=0.1)
    latents, prompt, time = torch.randn(2, 16, 16, 24), torch.randn(2, 40, 32), torch.rand(2)
    order = torch.stack([torch.randperm(96) for _ in range(2)])
    whole, turned = trainee(latents, prompt, time), trainee(latents, prompt, time, order)
    for all_tokens, some in zip(whole, turned, strict=True):
        torch.testing.assert_close(transformer.chosen(all_tokens, order), some, rtol=1e-4, atol=1e-4)
    drawn = trainee.model(latents, trainee.model.embed_caption(prompt), trainee.model.modulation(time))
    torch.testing.assert_close(patchify(drawn, 2), whole[0])


def test_half_of_the_tokens_are_kept_each_once() -> None:
    kept = transformer.kept_tokens(3, 256, 0.5, torch.Generator().manual_seed(0))
    assert kept is not None
    assert kept.shape == (3, 128)
    assert all(len(set(row.tolist())) == 128 for row in kept)
    assert transformer.kept_tokens(3, 256, 1.0, torch.Generator()) is None


def test_noise_is_paired_with_the_nearest_drawing_of_the_scene() -> None:
    """Each of two opposite drawings gets half of the noise, namely that which lies on its side."""
    drawing = torch.randn(1, 1, 16, 8, 12).expand(200, -1, -1, -1, -1)
    both = torch.cat((drawing, -drawing), dim=1)
    noise = torch.randn(200, 16, 8, 12)
    picked = latents.nearest_drawing(both, noise)
    assert torch.equal(picked, ((noise * drawing[:, 0]).sum((1, 2, 3)) < 0).long())
    assert 60 < int(picked.sum()) < 140
    labels = torch.arange(2).view(1, 2, 1, 1).expand(200, 2, 24, 2)
    clean, named = latents.chosen_drawing(both, labels, noise)
    assert torch.equal(clean, torch.where(picked.view(-1, 1, 1, 1) == 0, drawing[:, 0], -drawing[:, 0]))
    assert torch.equal(named[:, 0, 0], picked)


def test_only_tokens_that_are_shown_decide_which_drawing_it_is() -> None:
    one, other = torch.zeros(2, 1, 16, 8, 12)
    one[..., 2:4, 4:6], other[..., 6:8, 10:12] = 1.0, 9.0  # tokens 1 * 6 + 2 and 3 * 6 + 5
    both, noise = torch.stack((one, other), dim=1), torch.ones(1, 16, 8, 12)
    assert latents.nearest_drawing(both, noise).tolist() == [1]
    assert latents.nearest_drawing(both, noise, torch.tensor([[0, 8, 22]])).tolist() == [0]


def test_a_batch_has_all_drawings_of_its_scenes(run: Folders) -> None:
    cache = latents.Cache.load(latents.bucket_folder(run, 320, 256))
    batch = cache.batch(3, torch.Generator().manual_seed(0))
    assert batch.latents.shape == (3, TINY.drawings, TINY.vae.latents, 16, 20)
    assert batch.labels.shape == (3, TINY.drawings, cache.tokens, 2)
    assert len(batch.ids) == 3
    assert not torch.equal(batch.latents[:, 0], batch.latents[:, 1])


def test_what_no_prompt_decides_counts_too() -> None:
    """One token of 24 tells the drawings apart; of a single drawing none does."""
    drawings = torch.randn(2, 1, 16, 8, 12).expand(-1, 4, -1, -1, -1).clone()
    drawings[:, 1, :, 2:4, 4:6] += 3  # token 1 * 6 + 2
    weights = transformer.open_weights(drawings, None, 2)
    assert weights.shape == (2, 24)
    assert (weights > 1).nonzero()[:, 1].tolist() == [8, 8]
    kept = torch.tensor([[0, 8], [7, 9]])
    assert transformer.open_weights(drawings, kept, 2).tolist() == [[1, transformer.OPEN_WEIGHT], [1, 1]]
    assert torch.equal(transformer.open_weights(drawings[:, :1], None, 2), torch.ones(2, 24))


def test_what_is_worn_counts_most() -> None:
    what = torch.tensor([[LABEL["beach sky"], LABEL["cat"], LABEL["cactus"], LABEL["sunglasses"], LABEL["scarf"]]])
    backdrop, *things, glasses, scarf = transformer.token_weights(what)[0].tolist()
    assert backdrop < things[0] == things[1] < glasses == scarf


def test_goes_on_from_shipped_weights(run: Folders, tmp_path: Path) -> None:
    export.export(TINY, run, tmp_path / "model")
    (tmp_path / "next").mkdir()
    adopted = Folders(tmp_path / "next")
    adopt(TINY, adopted, tmp_path / "model")
    before, after = (torch.load(one.transformer, weights_only=True)["average"] for one in (run, adopted))
    for name, weight in before.items():  # shipped weights are rounded to bf16
        assert torch.equal(weight.bfloat16().float(), after[name]), name
    assert load_painter(TINY, adopted)("a red car", 256, 256, seed=1, steps=2).shape == (256, 256, 3)
    assert transformer.Trainer(TINY, adopted, minutes=1).run.step == 0
    alone = replace(TINY, workers=0)  # a worker forked beside threads that have computed may wait for them for ever
    language.train(alone, adopted, minutes=1)
    vae.train(alone, adopted, minutes=1)


def test_goes_on_from_another_run_as_it_was_before_its_distillation(run: Folders, tmp_path: Path) -> None:
    shutil.copytree(run.root, tmp_path / "other")
    other, adopted = Folders(tmp_path / "other"), Folders(tmp_path / "next")
    distill.distill(TINY, other, minutes=1)
    adopted.root.mkdir()
    adopt_run(adopted, other)
    trainer = transformer.Trainer(TINY, adopted, minutes=1)
    assert (trainer.stage, trainer.run.step) == (0, 0)
    undistilled = torch.load(run.transformer, weights_only=True)["average"]
    assert all(torch.equal(weight, undistilled[name]) for name, weight in trainer.average.model.state_dict().items())
    assert load_painter(TINY, adopted)("a red car", 256, 256, seed=1, steps=2).shape == (256, 256, 3)
    adopted.language.unlink()
    other.language.unlink()
    with pytest.raises(FileNotFoundError, match=r"language\.pt"):
        adopt_run(adopted, other)


def test_expanded_captions_keep_the_caption_and_add_the_scene() -> None:
    rng = np.random.default_rng(0)
    for _, scene in unseen(TINY, 40, plain_prompt):
        said = short_caption(scene, rng)
        text = continued(said, scene, rng)
        assert text.startswith(f"{said[0].upper()}{said[1:]}. ")
        assert f" The scene is {STAGES[scene.setting]}" in text
        assert text.endswith(".")


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: f"profile_{p.name}")
def test_profiles_fit_together(profile: Profile) -> None:
    shape = profile.transformer
    assert sum(shape.axes) == shape.dim // shape.heads
    assert all(axis % 2 == 0 for axis in shape.axes)
    cached = {(bucket.width, bucket.height) for bucket in profile.buckets}
    assert len(cached) == len(profile.buckets)
    for stage in profile.stages:
        assert {(width, height) for width, height, _ in stage.buckets} <= cached
        assert sum(share for *_, share in stage.buckets) == pytest.approx(1.0)


def test_sizes_of_all_kinds_are_trained_on() -> None:
    sizes = every_size(96, seed=17)
    assert len(set(sizes)) == 96
    assert all(side in range(512, 2049, 32) for size in sizes for side in size)
    assert set(sizes) <= {(bucket.width, bucket.height) for bucket in ONWARD.buckets}
    for below, beyond in ((0, 1), (1, 0)):  # in each corner of all sizes, and between them
        assert any(size[below] < 700 and size[beyond] > 1800 for size in sizes)
    assert any(min(size) > 1700 for size in sizes)


def test_large_pictures_are_judged_by_fewer_of_their_tokens(run: Folders, tmp_path: Path) -> None:
    """A coarse step sees several pictures of 64 tokens each, where it would see one whole."""
    folders = _copied(run, tmp_path)
    trainer = transformer.Trainer(TINY, folders, minutes=10)
    stage = replace(TINY.stages[0], tokens_per_batch=transformer.MOST_KEPT, coarse=1.0)
    asked: list[int] = []

    class Wide(latents.Cache):
        @property
        def tokens(self) -> int:
            return 4 * transformer.MOST_KEPT

        def batch(self, count: int, generator: torch.Generator) -> latents.Batch:
            asked.append(count)
            return super().batch(count, generator)

    small = latents.Cache.load(latents.bucket_folder(folders, 256, 256))
    trainer.step(Wide(small.latents, small.labels, small.captions), stage)
    trainer.step(Wide(small.latents, small.labels, small.captions), replace(stage, coarse=0.0))
    assert asked == [1, 1]
    trainer.step(Wide(small.latents, small.labels, small.captions), replace(stage, tokens_per_batch=4096))
    assert asked == [1, 1, 4]


def test_seed_prompt_size_is_trained_on() -> None:
    for profile in (CPU, ONWARD, GPU):
        assert any((bucket.width, bucket.height) == (1440, 512) for bucket in profile.buckets)


def test_a_right_verdict_is_all_right() -> None:
    for _, scene in [*unseen(TINY, 20, plain_prompt), *paraphrases(TINY.world)]:
        assert all(compare(Verdict.of(scene), Verdict.of(scene)).values())
        assert answers(scene, TINY.world)["kind"].shape == (2,)


def test_variety_is_that_of_drawings_where_the_painter_draws() -> None:
    scenes = iter(unseen(TINY, 2, plain_prompt))
    seen: list[Scene] = []

    def painter(prompt: str, width: int, height: int, seed: int) -> NDArray[np.uint8]:
        if seed == 0:
            seen.append(next(scenes)[1])
        return draw(replace(seen[-1], seed=seed), width, height).image

    def stubborn(prompt: str, width: int, height: int, seed: int) -> NDArray[np.uint8]:
        return np.zeros((height, width, 3), np.uint8)

    assert variety(TINY, cast(Painter, painter), 2, 256) == pytest.approx(100.0)
    assert variety(TINY, cast(Painter, stubborn), 2, 256) == 0.0


def test_the_judge_sees_more_ways_of_drawing_than_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Answered] = []

    def nothing(make: Answered, *_: int) -> Iterator[None]:
        shown.append(make)
        return iter(())

    monkeypatch.setattr(judge, "stream", nothing)
    with pytest.raises(StopIteration):
        judge.train_judge(TINY, Folders(tmp_path), minutes=1)
    world = shown[0].world
    assert len({sample_scene(world, np.random.default_rng(number)).seed for number in range(20)}) == 20
    assert world.kinds == TINY.world.kinds


def test_muon_steps_as_pytorchs_own() -> None:
    torch.manual_seed(0)
    shapes = [(48, 16), (48, 16), (16, 16), (16, 40)]
    ours, theirs = ([torch.nn.Parameter(torch.randn(shape)) for shape in shapes] for _ in range(2))
    for one, other in zip(ours, theirs, strict=True):
        other.data.copy_(one.data)
    muon = Muon(ours, 0.02, 0.95, torch.float32)
    reference = torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.0)
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        muon.step()
        reference.step()
    # theirs orthogonalises in bf16, to some percent; a step moves an entry by some hundredths
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)


def test_attention_in_training_is_attention() -> None:
    query, key, value = torch.randn(3, 2, 3, 40, 16).unbind()
    found = transformer.attend(query[:, :, :7], key, value)
    assert torch.allclose(found, sdpa(query[:, :, :7], key, value), atol=1e-5)
