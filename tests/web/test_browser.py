"""The playground in a real browser, against the real server round an instant engine.

Each test fails for any message on the console, any breach of the policy, and any request to another host. None measures
time: they wait for what the page shows.
"""

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.api.instant import Instant
from tests.web.browser import WHY, Watch, choose, launched, opened
from tests.web.conftest import KEY, Playground, serving
from zturbo.params import MAX_PROMPT, SIZES, GenerationParams
from zturbo.pictures import Settings, encode, read_metadata
from zturbo.safety.checker import Safety, Verdict

PROMPT = "a red boat"
ODD = 'it\'s "odd": $HOME `x` \\n {a} ${b} %s 雪 🦖\nsecond <b>line</b>'
TIMES = "\N{MULTIPLICATION SIGN}"
SERIOUS = ("serious", "critical")
PATIENCE_MS = 20_000
expect.set_options(timeout=PATIENCE_MS)


class Steps:
    """A gate of the engine that lets steps through one by one."""

    def __init__(self) -> None:
        self._allowed = threading.Semaphore(0)

    def wait(self, timeout_s: float) -> bool:
        return self._allowed.acquire(timeout=timeout_s)

    def allow(self, steps: int) -> None:
        self._allowed.release(steps)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as found:
        if found is None:
            pytest.skip(WHY)
        yield found


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
    context.set_default_timeout(PATIENCE_MS)
    yield context
    context.close()


@pytest.fixture
def watch(playground: Playground) -> Iterator[Watch]:
    watch = Watch(playground.url)
    yield watch
    assert watch.found() == []


@pytest.fixture
def page(context: BrowserContext, watch: Watch) -> Page:
    return opened(context, watch)


@pytest.fixture
def steps(playground: Playground) -> Iterator[Steps]:
    """The engine draws no step until it is allowed to."""
    steps, gate = Steps(), playground.engine.gate
    playground.engine.gate = steps  # type: ignore[assignment]
    yield steps
    playground.engine.gate = gate
    steps.allow(1000)


def start(page: Page, prompt: str = PROMPT) -> None:
    page.locator("#prompt").fill(prompt)
    page.locator("#draw").click()


def draw(page: Page, prompt: str = PROMPT) -> None:
    before = page.locator("#pictures li").count()
    start(page, prompt)
    expect(page.locator("#pictures li")).not_to_have_count(before)
    expect(page.locator("#draw")).to_be_visible()
    expect(page.locator("#about")).to_be_visible()


def facts(page: Page) -> dict[str, str]:
    names, values = page.locator("#about dt").all_inner_texts(), page.locator("#about dd").all_inner_texts()
    return dict(zip(names, values, strict=True))


def shown(page: Page, selector: str = "#easel img") -> bytes:
    """The RGB bytes of the picture that an element shows."""
    data = page.locator(selector).first.evaluate(
        """async (image) => {
            await image.decode();
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            canvas.getContext("2d").drawImage(image, 0, 0);
            return canvas.toDataURL("image/png").split(",")[1];
        }"""
    )
    return rgb(base64.b64decode(data))


def rgb(data: bytes) -> bytes:
    with Image.open(BytesIO(data)) as picture:
        return picture.convert("RGB").tobytes()


def pixels(seed: int, size: str = "landscape_4_3") -> bytes:
    """What the engine draws for a seed."""
    params = GenerationParams.parse({"prompt": PROMPT, "size": size, "seed": seed})
    return bytes(Instant().pixels(params, seed).tobytes())


def settings(**changes: Any) -> Settings:
    facts: dict[str, Any] = {"prompt": ODD, "seed": 77, "width": 640, "height": 512, "steps": 5, "acceleration": "high",
             "model": "instant", "model_version": "instant@0"}  # fmt: skip
    return Settings(**(facts | changes))


def file_of(output_format: str, written: Settings) -> bytes:
    params = GenerationParams.parse({"prompt": PROMPT, "size": "square", "seed": 1})
    return encode(Instant().pixels(params, 1), output_format, written)


def form(page: Page) -> dict[str, Any]:
    """What the form holds, as the page itself remembers it."""
    return dict(json.loads(page.evaluate("localStorage.getItem('zturbo.form')")))


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_a_person_types_and_a_picture_appears_without_a_key(page: Page) -> None:
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#model")).to_contain_text("instant")
    draw(page)
    told = facts(page)
    assert told["Size"] == f"1024 {TIMES} 768"
    assert told["Credits"] == "10,500"
    assert {"Seed", "Steps", "Acceleration", "Time", "Model"} <= told.keys()
    assert shown(page) == pixels(int(told["Seed"]))
    expect(page.locator("#about .prompt")).to_have_text(PROMPT)
    expect(page.locator("#live")).to_contain_text("Done: one picture")


def test_an_example_draws_at_once(page: Page) -> None:
    page.locator("#examples button").first.click()
    expect(page.locator("#about .prompt")).to_contain_text("T-Rex")
    assert facts(page)["Size"] == f"1440 {TIMES} 512"


def test_every_limit_comes_from_the_servers_description(page: Page) -> None:
    """The form has what /openapi.json says, and presets show their real proportions."""
    assert page.locator("#count").inner_text() == f"0 / {MAX_PROMPT:,}"
    assert page.locator("#width").get_attribute("min") == "512"
    assert page.locator("#width").get_attribute("step") == "32"
    assert page.locator("#steps").get_attribute("max") == "8"
    values = page.locator("input[name=size]").evaluate_all("(all) => all.map((one) => one.value)")
    assert values == [*SIZES, "custom"]
    box = page.locator("input[value=portrait_16_9] + .tile .shape").bounding_box()
    assert box is not None
    assert box["width"] / box["height"] == pytest.approx(576 / 1024, rel=0.05)


def test_other_limits_are_followed(context: BrowserContext, watch: Watch) -> None:
    """A server that allows less shows less: the page has no second copy."""
    page = context.new_page()

    def fewer(route: Any) -> None:
        document = route.fetch().json()
        content = document["paths"]["/v1/images/generations"]["post"]["requestBody"]["content"]
        schema = content["application/json"]["schema"]
        name = schema.get("$ref", "").rpartition("/")[2]
        members = (document["components"]["schemas"][name] if name else schema)["properties"]
        members["prompt"]["maxLength"], members["output_format"]["enum"] = 123, ["webp"]
        members["num_images"]["maximum"], members["num_inference_steps"]["maximum"] = 2, 3
        route.fulfill(json=document)

    page.route("**/openapi.json", fewer)
    page.goto(f"{watch.home}/")
    page.wait_for_selector("html[data-ready]")
    assert page.locator("#count").inner_text() == "0 / 123"
    expect(page.locator("input[name=images]")).to_have_count(2)
    expect(page.locator("input[name=format]")).to_have_count(1)
    assert page.locator("#steps").get_attribute("max") == "3"


def test_several_pictures_of_one_request(page: Page) -> None:
    choose(page, "images", 3)
    choose(page, "size", "square")
    draw(page)
    expect(page.locator("#easel figure")).to_have_count(3)
    expect(page.locator("#pictures li")).to_have_count(3)
    seed = int(facts(page)["Seed"])
    page.locator("#easel button").nth(2).click()
    assert facts(page)["Seed"] == str(seed + 2)
    assert facts(page)["Credits"] == "10,500"
    page.locator("#easel button").nth(2).click()
    expect(page.locator("#viewer")).to_be_visible()


def test_the_settings_reach_the_server(page: Page) -> None:
    choose(page, "size", "custom")
    page.locator("#width").fill("512")
    page.locator("#height").fill("640")
    page.locator("#swap").click()
    page.locator("#steps").fill("3")
    page.locator("#seed").fill("9007199254740991")
    choose(page, "format", "webp")
    choose(page, "level", "none")
    page.locator("#expansion").uncheck(force=True)
    page.locator("#safety").uncheck(force=True)
    with page.expect_request("**/v1/images/generations") as sent:
        draw(page, ODD)
    assert sent.value.post_data_json == {
        "model": "alibaba/z-image-turbo", "prompt": ODD, "image_size": {"width": 640, "height": 512},
        "num_inference_steps": 3, "num_images": 1, "output_format": "webp", "acceleration": "none", "seed": 2**53 - 1,
        "enable_prompt_expansion": False, "enable_safety_checker": False,
        "response_format": "b64_json", "stream": True, "partial_images": 3,
    }  # fmt: skip
    assert facts(page)["Format"] == "WEBP"


def test_it_is_watched_while_it_is_drawn(page: Page, steps: Steps) -> None:
    start(page)
    steps.allow(2)
    bar = page.get_by_role("progressbar")
    expect(page.locator("#stage-count")).to_have_text("step 2 of 8")
    expect(bar).to_have_attribute("aria-valuenow", "25")
    expect(page.locator("#stage-name")).to_have_text("Drawing")
    expect(page.locator(".frame.seen img")).to_have_css("opacity", "1")
    expect(page.locator("#cancel")).to_be_visible()
    steps.allow(6)
    expect(page.locator("#about")).to_be_visible()
    expect(bar).to_be_hidden()


@pytest.mark.parametrize("how", ["button", "escape"])
def test_cancel_stops_the_engine_within_a_step(page: Page, playground: Playground, steps: Steps, how: str) -> None:
    start(page)
    steps.allow(2)
    expect(page.locator("#stage-count")).to_have_text("step 2 of 8")
    drawn = playground.engine.steps_drawn
    if how == "button":
        page.locator("#cancel").click()
    else:
        page.keyboard.press("Escape")
    expect(page.locator("#toast")).to_contain_text("Cancelled")
    expect(page.locator("#draw")).to_be_visible()
    expect(page.locator("#empty")).to_be_visible()
    while (status := last_status(playground)) == "running":
        page.wait_for_timeout(10)
    assert status == "cancelled"
    assert playground.engine.steps_drawn == drawn


def last_status(playground: Playground) -> str:
    """How the last request ended; asked on another thread, as Playwright's event loop runs on this one."""
    logs = playground.app.state.service.records.history.logs(1)
    with ThreadPoolExecutor() as pool:
        return str(pool.submit(asyncio.run, logs).result().rows[0].status)


def test_the_prompt_as_drawn_and_flags_and_times_are_shown(context: BrowserContext, watch: Watch) -> None:
    """Members that a server may add to the last event."""
    event = completed(
        revised_prompt="a red boat on a calm sea",
        timings={"queue": 1.5, "expand": 0.5, "denoise": 6.0, "total": 8.0},
        model_version="instant@0",
        acceleration="none",
    )
    page = opened(context, watch)
    page.route("**/v1/images/generations", lambda route: route.fulfill(body=f"data: {json.dumps(event)}\n\n"))
    draw(page)
    expect(page.locator("#about-title")).to_have_text("Drawn from the expanded prompt")
    expect(page.locator("#about .prompt")).to_have_text("a red boat on a calm sea")
    page.get_by_text("You wrote").click()
    expect(page.locator("#about details p")).to_have_text(PROMPT)
    times = page.locator(".times li").all_inner_texts()
    assert times == ["Waiting 1.5 s", "Expanding 0.5 s", "Drawing 6 s"]
    assert facts(page)["Acceleration"] == "None", "the level that drew, not the one that was asked for"


def script_the_stream(page: Page) -> None:
    """Let the test be the network: `tell(event)` sends an event of the answer, `end()` ends it, `cut()` breaks it."""
    page.evaluate(
        """() => {
            const real = window.fetch;
            const start = (signal) => (out) => {
                const send = (text) => out.enqueue(new TextEncoder().encode(text));
                window.tell = (event) => send(`data: ${JSON.stringify(event)}\\r\\n\\r\\n`);
                window.end = () => out.close();
                window.cut = () => out.error(new TypeError("network error"));
                signal.addEventListener("abort", () => out.error(signal.reason));
            };
            window.fetch = (path, options) => path.endsWith("generations")
                ? new Response(new ReadableStream({ start: start(options.signal) })) : real(path, options);
        }"""
    )


def completed(seed: int = 4, **members: Any) -> dict[str, Any]:
    """The event that brings a picture."""
    data = base64.b64encode(file_of("png", settings())).decode()
    return {
        "type": "image_generation.completed", "b64_json": data, "width": 512, "height": 512, "seed": seed,
        "content_type": "image/png", "output_format": "png", "usage": {"credits_used": 10500},
    } | members  # fmt: skip


DONE = {"type": "image_generation.progress", "stage": "done", "image": 2, "images": 3, "step": 8, "steps": 8}


@pytest.mark.parametrize("end", ["escape", "cut", "end"])
def test_pictures_that_have_arrived_are_kept(page: Page, end: str) -> None:
    """They are paid for, whatever becomes of those after them."""
    script_the_stream(page)
    choose(page, "images", 3)
    start(page)
    page.wait_for_function("() => Boolean(window.tell)")
    for event in (DONE, completed(4), completed(5)):
        page.evaluate("(event) => tell(event)", event)
    expect(page.locator("#stage-name")).to_have_text("Saving")
    if end == "escape":
        page.keyboard.press("Escape")
    else:
        page.evaluate(f"{end}()")
    expect(page.locator("#toast")).to_have_text("2 of 3 pictures arrived; the whole request was charged.")
    expect(page.locator("#easel figure")).to_have_count(2)
    expect(page.locator("#form-error")).to_be_hidden()
    page.reload()
    page.wait_for_selector("html[data-ready]")
    expect(page.locator("#pictures li")).to_have_count(2)


@pytest.mark.parametrize("end", ["escape", "cut", "end"])
def test_a_late_end_does_not_claim_that_it_was_free(page: Page, end: str) -> None:
    script_the_stream(page)
    start(page)
    page.wait_for_function("() => Boolean(window.tell)")
    page.evaluate("(event) => tell(event)", DONE | {"image": 0, "images": 1})
    expect(page.locator("#stage-name")).to_have_text("Saving")
    if end == "escape":
        page.keyboard.press("Escape")
    else:
        page.evaluate(f"{end}()")
    expect(page.locator("#form-error")).to_contain_text("they may have been charged")
    expect(page.locator("#toast")).to_be_hidden()


def test_the_place_in_the_queue_is_shown(page: Page) -> None:
    script_the_stream(page)
    start(page)
    page.wait_for_function("() => Boolean(window.tell)")
    queued = {"type": "image_generation.progress", "stage": "queued", "image": 0, "images": 1, "step": 0, "steps": 8}
    page.evaluate("(event) => tell(event)", queued | {"position": 3, "expected_s": 12.2})
    expect(page.locator("#stage-name")).to_have_text("Waiting: 3 ahead of you")
    expect(page.locator("#stage-count")).to_have_text("about 13 s")
    expect(page.get_by_role("progressbar")).not_to_have_attribute("aria-valuenow", re.compile(""))
    expect(page.locator("#live")).to_contain_text("3 ahead of you")
    page.evaluate("(event) => tell(event)", queued | {"position": 0})
    expect(page.locator("#stage-name")).to_have_text("Waiting")
    page.evaluate("end()")
    expect(page.locator("#form-error")).to_contain_text("The connection ended before the picture was done.")


def test_pictures_may_be_drawn_side_by_side(page: Page) -> None:
    """Progress never goes back when the server takes turns, and each preview is put where it belongs."""
    script_the_stream(page)
    choose(page, "images", 2)
    start(page)
    page.wait_for_function("() => Boolean(window.tell)")
    bar, step = page.get_by_role("progressbar"), {"type": "image_generation.progress", "stage": "denoise", "images": 2}
    for image, at, percent in ((0, 1, "6"), (1, 1, "13"), (0, 2, "19"), (1, 2, "25")):
        page.evaluate("(event) => tell(event)", step | {"image": image, "step": at, "steps": 8})
        expect(bar).to_have_attribute("aria-valuenow", percent)
    preview = base64.b64encode(file_of("png", settings())).decode()
    page.evaluate(
        "(event) => tell(event)",
        {"type": "image_generation.partial_image", "b64_json": preview, "output_format": "png"},
    )
    expect(page.locator("#easel figure").nth(1)).to_have_class(re.compile("seen"))
    expect(page.locator("#easel figure").nth(0)).not_to_have_class(re.compile("seen"))
    page.evaluate("end()")
    expect(page.locator("#form-error")).to_be_visible()


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_the_servers_problems_are_shown_at_their_fields(page: Page, watch: Watch) -> None:
    watch.allowed = ("status of 400",)
    choose(page, "size", "custom")
    page.locator("#width").fill("1000")
    page.locator("#height").fill("100")
    page.locator("#seed").fill("0")
    start(page, "x" * (MAX_PROMPT + 1))
    size = page.locator("#image_size-error")
    expect(size).to_contain_text("width: must be a multiple of 32 from 512 to 2048; got 1000")
    expect(size).to_contain_text("height: must be")
    expect(page.locator("#prompt-error")).to_contain_text(f"got {MAX_PROMPT + 1}")
    expect(page.locator("#seed-error")).to_contain_text("must be an integer from 1; got 0")
    expect(page.locator("#form-error")).to_be_hidden()
    expect(page.locator("#prompt")).to_be_focused()
    for field in ("prompt", "width", "height", "seed"):
        expect(page.locator(f"#{field}")).to_have_attribute("aria-invalid", "true")
    choose(page, "size", "square")
    page.locator("#seed").fill("")
    draw(page)
    expect(page.locator("[aria-invalid]")).to_have_count(0)
    expect(size).to_be_hidden()


def test_an_empty_prompt_is_asked_for(page: Page) -> None:
    start(page, "  ")
    expect(page.locator("#prompt-error")).to_have_text("Write what the picture should show.")
    expect(page.locator("#prompt")).to_be_focused()


def test_a_seed_that_scripts_cannot_hold_is_told(page: Page) -> None:
    page.locator("#seed").fill("9007199254740993")
    start(page)
    expect(page.locator("#seed-error")).to_contain_text("the API takes larger ones")


def test_a_failure_while_drawing_is_told(page: Page) -> None:
    start(page, "break")
    expect(page.get_by_role("alert").first).to_contain_text("internal error")
    expect(page.locator("#form-error")).to_contain_text("Request ")
    expect(page.locator("body")).not_to_contain_text("secret of the inside")
    draw(page)
    expect(page.locator("#form-error")).to_be_hidden()


def test_a_full_queue_says_when_to_come_back(
    page: Page, watch: Watch, playground: Playground, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch.allowed = ("status of 503",)
    start(page)
    expect(page.locator("#stage-name")).to_have_text("Reading the prompt")
    monkeypatch.setattr(playground.app.state.service.worker.queue, "limit", 0)
    other = opened(page.context, watch)
    start(other)
    expect(other.locator("#form-error")).to_contain_text("the queue is full")
    expect(other.locator("#form-error")).to_contain_text(re.compile(r"Try again in \d+ s\."))
    steps.allow(8)
    expect(page.locator("#about")).to_be_visible()


def test_a_server_that_is_gone_is_told(page: Page, watch: Watch) -> None:
    watch.allowed = ("net::ERR_FAILED",)
    page.route("**/v1/**", lambda route: route.abort())
    start(page)
    expect(page.locator("#form-error")).to_contain_text("The server does not answer")


def test_while_one_request_runs_the_form_is_left_alone(page: Page, steps: Steps) -> None:
    page.locator("#seed").fill("42")
    steps.allow(8)
    draw(page)
    page.locator("#prompt").fill("another prompt")
    page.locator("#draw").click()
    expect(page.locator("#stage-name")).to_have_text("Reading the prompt")
    page.locator("#pictures button").click()  # the first one, looked at meanwhile
    for act in ("#act-vary", "#act-again"):
        page.locator(act).click()
        expect(page.locator("#toast")).to_have_text("Another request is being drawn. Esc cancels it.")
        expect(page.locator("#prompt")).to_have_value("another prompt")
        expect(page.locator("#seed-lock")).to_have_attribute("aria-pressed", "true")
    page.locator("#act-remove").click()
    page.locator("#examples button").first.click()
    expect(page.locator("#prompt")).to_have_value("another prompt")
    steps.allow(8)
    expect(page.locator("#about .prompt")).to_have_text("another prompt")


def test_a_browser_that_forbids_storage_draws_all_the_same(context: BrowserContext, watch: Watch) -> None:
    """Even to look the storage up is an error there; a key lives as long as the page."""
    context.add_init_script(
        """for (const name of ["sessionStorage", "localStorage", "indexedDB"])
            Object.defineProperty(window, name, { get() { throw new DOMException("denied", "SecurityError"); } });"""
    )
    page = opened(context, watch)
    draw(page)
    page.locator("#open-account").click()
    page.get_by_label("API key", exact=True).fill(KEY)
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#account-now")).to_contain_text(f"with the key {KEY[:8]}…")
    page.keyboard.press("Escape")
    with page.expect_request("**/v1/images/generations") as sent:
        draw(page)
    assert sent.value.headers["authorization"] == f"Bearer {KEY}"
    page.locator("#open-account").click()
    page.get_by_role("button", name="Forget it").click()
    expect(page.locator("#account-now")).to_contain_text("no key is needed")


def test_markup_in_a_prompt_stays_text(page: Page) -> None:
    prompt = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    draw(page, prompt)
    expect(page.locator("#about .prompt")).to_have_text(prompt)
    page.locator("#act-code").click()
    expect(page.locator("#code-text")).to_contain_text("<script>")
    assert page.locator("script").count() == 2


# --- seeds, history, comparing ---------------------------------------------------------------------------------------


def test_a_locked_seed_stays_and_an_open_one_changes(page: Page) -> None:
    page.locator("#seed").fill("42")
    expect(page.locator("#seed-lock")).to_have_attribute("aria-pressed", "true")
    draw(page)
    assert facts(page)["Seed"] == "42"
    page.locator("#act-vary").click()
    expect(page.locator("#pictures li")).to_have_count(2)
    other = facts(page)["Seed"]
    assert other != "42"
    expect(page.locator("#seed")).to_have_value(other)  # shown, not kept
    expect(page.locator("#seed-lock")).to_have_attribute("aria-pressed", "false")
    page.locator("#seed-last").click()
    draw(page)
    assert facts(page)["Seed"] == other
    page.locator("#seed-random").click()
    draw(page)
    assert facts(page)["Seed"] != other


def test_a_double_click_draws_once_and_cancels_once(page: Page, steps: Steps) -> None:
    """Draw and Cancel stand in the same place."""
    page.locator("#prompt").fill(PROMPT)
    page.locator("#draw").dblclick()
    steps.allow(2)
    expect(page.locator("#stage-count")).to_have_text("step 2 of 8")
    page.locator("#cancel").dblclick()
    expect(page.locator("#toast")).to_contain_text("Cancelled")
    expect(page.locator("#empty")).to_be_visible()
    page.wait_for_timeout(100)
    expect(page.locator("#draw")).to_be_visible()


def test_a_key_that_is_held_down_draws_once(page: Page, steps: Steps) -> None:
    page.locator("#prompt").fill(PROMPT)
    page.locator("#draw").focus()
    for _ in range(5):  # without a key up between them: repeats
        page.keyboard.down("Enter")
    steps.allow(2)
    expect(page.locator("#stage-count")).to_have_text("step 2 of 8")
    page.keyboard.up("Enter")
    expect(page.locator("#cancel")).to_be_visible()


def test_a_prompt_that_is_being_written_is_not_lost(page: Page) -> None:
    draw(page)
    page.locator("#prompt").fill("something long")
    for count, act in ((2, "vary"), (3, "again")):
        page.locator(f"#act-{act}").click()
        expect(page.locator("#pictures li")).to_have_count(count)
        expect(page.locator("#about .prompt")).to_have_text(PROMPT)
        expect(page.locator("#prompt")).to_have_value("something long")


def test_another_picture_is_looked_at_and_the_drawing_again(page: Page, steps: Steps) -> None:
    steps.allow(8)
    draw(page)
    start(page, "another prompt")
    expect(page.locator("#back-to-drawing")).to_be_hidden()
    page.locator("#pictures button").click()
    expect(page.locator("#about .prompt")).to_have_text(PROMPT)
    steps.allow(2)
    expect(page.locator("#stage-count")).to_have_text("step 2 of 8")
    page.locator("#back-to-drawing").click()
    expect(page.locator("#about")).to_be_hidden()
    expect(page.locator(".frame.at-work")).to_be_visible()
    steps.allow(6)
    expect(page.locator("#about .prompt")).to_have_text("another prompt")
    expect(page.locator("#progress")).to_be_hidden()


def test_after_a_cancel_all_pictures_of_the_group_are_back(page: Page, steps: Steps) -> None:
    choose(page, "images", 3)
    steps.allow(24)
    draw(page)
    expect(page.locator("#easel img")).to_have_count(3)
    page.locator("#act-vary").click()
    page.locator("#cancel").click()
    expect(page.locator("#easel img")).to_have_count(3)


def test_escape_leaves_the_comparison_before_the_drawing(page: Page, steps: Steps) -> None:
    steps.allow(8)
    draw(page)
    start(page, "another prompt")
    page.locator("#pictures button").click()
    page.locator("#act-compare").click()
    expect(page.locator("#comparing")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#comparing")).to_be_hidden()
    page.locator("#pictures button").focus()
    steps.allow(8)
    expect(page.locator("#about .prompt")).to_have_text("another prompt")
    expect(page.locator("#pictures button").nth(1)).to_be_focused()


def test_drawing_again_gives_the_same_picture(page: Page) -> None:
    draw(page)
    seed, first = facts(page)["Seed"], shown(page)
    page.locator("#act-again").click()
    expect(page.locator("#pictures li")).to_have_count(2)
    assert facts(page)["Seed"] == seed
    assert shown(page) == first


def test_the_history_survives_a_reload(page: Page) -> None:
    draw(page, "the first one")
    page.locator("#seed-random").click()
    draw(page, "the second one")
    second, seed = shown(page), facts(page)["Seed"]
    page.reload()
    page.wait_for_selector("html[data-ready]")
    expect(page.locator("#pictures li")).to_have_count(2)
    expect(page.locator("#prompt")).to_have_value("the second one")
    assert facts(page)["Seed"] == seed
    assert shown(page) == second
    page.locator("#pictures button").nth(1).click()
    expect(page.locator("#about .prompt")).to_have_text("the first one")
    page.locator("#act-remove").click()
    expect(page.locator("#pictures li")).to_have_count(1)
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("#clear").click()
    expect(page.locator("#history-empty")).to_be_visible()
    page.reload()
    page.wait_for_selector("html[data-ready]")
    expect(page.locator("#pictures li")).to_have_count(0)
    expect(page.locator("#empty")).to_be_visible()


def wall(page: Page) -> list[str]:
    """The pictures' ids, in the order of the wall."""
    return page.locator("#pictures button").evaluate_all("(all) => all.map((one) => one.dataset.id)")


def test_pictures_of_one_request_keep_their_order(page: Page) -> None:
    choose(page, "images", 4)
    choose(page, "size", "square")
    page.locator("#seed").fill("10")
    draw(page)
    order = wall(page)

    def seeds() -> list[str]:
        found = []
        for i in range(4):
            if i:
                page.locator("#easel button").nth(i).click()
            found.append(facts(page)["Seed"])
        page.locator("#easel button").first.click()
        return found

    assert seeds() == ["10", "11", "12", "13"]
    page.locator("#pictures button").nth(1).click()
    page.locator("#easel button").first.click()
    assert seeds() == ["10", "11", "12", "13"]
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert wall(page) == order
    page.locator("#easel button").first.click()
    assert seeds() == ["10", "11", "12", "13"]


def test_removing_all_leaves_what_another_tab_drew(page: Page, watch: Watch) -> None:
    draw(page, "mine")
    other = opened(page.context, watch)
    draw(other, "of the other tab")
    page.bring_to_front()
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("#clear").click()
    expect(page.locator("#history-empty")).to_be_visible()
    expect(page.locator("#stage")).to_be_focused()
    other.reload()
    other.wait_for_selector("html[data-ready]")
    expect(other.locator("#pictures li")).to_have_count(1)
    expect(other.locator("#about .prompt")).to_have_text("of the other tab")


def test_the_wall_shows_no_picture_that_the_database_let_go(context: BrowserContext, watch: Watch) -> None:
    context.route(
        "**/web/history.js",
        lambda route: route.fulfill(
            body=route.fetch().text().replace("MAX_PICTURES = 500", "MAX_PICTURES = 2"), content_type="text/javascript"
        ),
    )
    page = opened(context, watch)
    for prompt in ("one", "two"):
        draw(page, prompt)
    before = wall(page)
    start(page, "three")
    expect(page.locator("#about .prompt")).to_have_text("three")
    assert wall(page)[1:] == before[:1]
    order = wall(page)
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert wall(page) == order


def test_a_downloaded_picture_is_the_servers_file(page: Page, tmp_path: Path) -> None:
    draw(page, "A red boat, at sea!")
    with page.expect_download() as download:
        page.locator("#act-save").click()
    seed = int(facts(page)["Seed"])
    assert download.value.suggested_filename == f"a-red-boat-at-sea-{seed}.png"
    download.value.save_as(tmp_path / "saved.png")
    found = read_metadata(tmp_path / "saved.png")["settings"]
    assert (found["prompt"], found["seed"]) == ("A red boat, at sea!", seed)


def test_two_pictures_are_compared_with_a_slider(page: Page) -> None:
    for seed in ("42", "43"):  # of random ones one pair in 256 has the same pixels
        page.locator("#seed").fill(seed)
        draw(page, "the first one")
    page.locator("#act-compare").click()
    expect(page.locator("#comparing")).to_be_visible()
    page.locator("#pictures button").nth(1).click()
    expect(page.locator("#compare")).to_be_visible()
    slider = page.locator("#compare-at")
    expect(slider).to_be_focused()
    page.keyboard.press("Home")
    expect(page.locator("#compare-second")).to_have_css("clip-path", "inset(0px 0px 0px 0%)")
    page.keyboard.press("End")
    expect(page.locator("#compare-second")).to_have_css("clip-path", "inset(0px 0px 0px 100%)")
    expect(page.locator("#compare-facts .differs th")).to_have_text(["Seed"])
    assert shown(page, "#compare-first") != shown(page, "#compare-second")
    page.keyboard.press("Escape")
    expect(page.locator("#comparing")).to_be_hidden()


# --- pictures that bring their settings back -------------------------------------------------------------------------


def drop(page: Page, name: str, kind: str, data: bytes) -> None:
    page.evaluate(
        """([name, kind, data]) => {
            const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, {type: kind}));
            for (const type of ["dragenter", "dragover", "drop"])
                document.body.dispatchEvent(
                    new DragEvent(type, {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        [name, kind, base64.b64encode(data).decode()],
    )


WANTED = {
    "prompt": ODD, "image_size": {"width": 640, "height": 512}, "num_inference_steps": 5, "seed": 77, "num_images": 1,
    "acceleration": "high", "enable_prompt_expansion": False,
}  # fmt: skip


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_dropped_picture_brings_its_settings_back(page: Page, output_format: str) -> None:
    drop(page, "made-here", f"image/{output_format}", file_of(output_format, settings()))
    expect(page.locator("#toast")).to_contain_text("The settings of made-here are in the form.")
    expect(page.locator("#toast")).not_to_contain_text("another model")
    expect(page.locator("#drop")).to_be_hidden()
    assert form(page) | WANTED == form(page)
    expect(page.locator("#prompt")).to_be_focused()


def test_a_picture_drawn_here_and_opened_again(page: Page, tmp_path: Path) -> None:
    page.locator("#seed").fill("5")
    choose(page, "size", "portrait_16_9")
    draw(page)
    with page.expect_download() as download:
        page.locator("#act-save").click()
    download.value.save_as(tmp_path / "saved.png")
    choose(page, "size", "square")
    page.locator("#seed").fill("6")
    page.locator("#prompt").fill("another")
    page.locator("#open-picture").set_input_files(tmp_path / "saved.png")
    expect(page.locator("#prompt")).to_have_value(PROMPT)
    expect(page.locator("#seed")).to_have_value("5")
    expect(page.locator("input[value=portrait_16_9]")).to_be_checked()


def test_an_expanded_picture_and_one_of_another_version(page: Page) -> None:
    written = settings(drawn_prompt="longer", model_version="other@1", width=1024, height=1024)
    drop(page, "other.png", "image/png", file_of("png", written))
    expect(page.locator("#toast")).to_contain_text("It was drawn by other@1")
    assert form(page)["enable_prompt_expansion"] is True
    assert form(page)["image_size"] == "square_hd"


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png(*chunks: bytes) -> bytes:
    whole = file_of("png", settings())
    head = 8 + 25  # the signature, and the header's chunk
    return whole[:head] + b"".join(chunks) + chunk(b"IEND", b"")


def test_compressed_and_foreign_texts_are_read(page: Page) -> None:
    text = settings(prompt="packed").as_json().encode()
    drop(page, "a.png", "image/png", png(chunk(b"iTXt", b"zturbo\0\1\0en\0\0" + zlib.compress(text))))
    expect(page.locator("#prompt")).to_have_value("packed")
    infotext = "a cat, asleep\nNegative prompt: dogs\nSteps: 4, Sampler: Euler, Seed: 12, Size: 512x768, Model: x"
    drop(page, "b.png", "image/png", png(chunk(b"tEXt", b"parameters\0" + infotext.encode("latin-1"))))
    expect(page.locator("#prompt")).to_have_value("a cat, asleep")
    found = form(page)
    assert (found["seed"], found["num_inference_steps"]) == (12, 4)
    assert found["image_size"] == {"width": 512, "height": 768}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n" + b"\xff" * 40,
        b"\x89PNG\r\n\x1a\n" + chunk(b"iTXt", b"zturbo"),
        b"\x89PNG\r\n\x1a\n" + chunk(b"iTXt", b"zturbo\0\1\0\0\0no zlib"),
        b"\x89PNG\r\n\x1a\n" + chunk(b"iTXt", b"zturbo\0\0\0\0\0[1, 2]"),
        b"\x89PNG\r\n\x1a\n" + chunk(b"iTXt", b'zturbo\0\0\0\0\0{"prompt": 5}'),
        b"\x89PNG\r\n\x1a\n" + chunk(b"iTXt", b"zturbo\0\1\0\0\0" + zlib.compress(b" " * 2**24)),
    ],
    ids=range(9),
)  # fmt: skip
def test_hostile_files_change_nothing(page: Page, data: bytes) -> None:
    page.locator("#prompt").fill("mine")
    drop(page, "x.png", "image/png", data)
    expect(page.locator("#toast")).to_have_text("No settings were found in this file.")
    expect(page.locator("#prompt")).to_have_value("mine")


def test_odd_values_in_a_file_stay_values(page: Page, watch: Watch) -> None:
    watch.allowed = ("status of 400",)
    odd = {"prompt": "<b>x</b>", "seed": -5, "width": "1000", "height": 7, "steps": "many", "acceleration": "<i>"}
    drop(page, "x.png", "image/png", png(chunk(b"iTXt", b"zturbo\0\0\0\0\0" + json.dumps(odd).encode())))
    expect(page.locator("#prompt")).to_have_value("<b>x</b>")
    page.locator("#draw").click()
    expect(page.locator("#seed-error")).to_be_visible()
    expect(page.locator("#image_size-error")).to_contain_text("height")


# --- code that runs --------------------------------------------------------------------------------------------------


RUNNERS = {
    "curl": ["sh", "-e"],
    "requests": [sys.executable, "-"],
    "openai": [sys.executable, "-"],
    "javascript": ["node", "--input-type=module", "-"],
}


@pytest.mark.parametrize("language", RUNNERS)
def test_copied_code_draws_the_same_picture(page: Page, tmp_path: Path, language: str) -> None:
    program = RUNNERS[language][0] if language != "curl" else "curl"
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#seed").fill("21")
    choose(page, "size", "square")
    choose(page, "format", "webp" if language == "openai" else "png")
    page.locator("#prompt").fill(ODD)
    page.locator("#open-code").click()
    page.locator(f"#tab-{language}").click()
    page.locator("#copy-code").click()
    expect(page.locator("#toast")).to_have_text("Copied.")
    code = page.evaluate("navigator.clipboard.readText()")
    done = subprocess.run(
        RUNNERS[language], input=code, cwd=tmp_path, env={**os.environ, "ZTURBO_API_KEY": KEY}, text=True,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if language == "curl":
        (item,) = json.loads(done.stdout)["data"]
        subprocess.run(["curl", "-sSf", "-o", tmp_path / "picture-0.png", item["url"]], check=True, timeout=60)
    (file,) = tmp_path.iterdir()
    found = read_metadata(file)["settings"]
    assert (found["prompt"], found["seed"], found["width"], found["steps"]) == (ODD, 21, 512, 8)
    if file.suffix == ".png":
        assert rgb(file.read_bytes()) == pixels(21, "square")


def test_half_a_size_is_neither_drawn_nor_shown_as_code(page: Page) -> None:
    """The server would put its own number in the gap, and charge for that."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    choose(page, "size", "custom")
    page.locator("#width").fill("")
    page.locator("#height").fill("512")
    page.locator("#prompt").fill(PROMPT)
    for button in ("#draw", "#open-code"):
        page.locator(button).click()
        expect(page.locator("#image_size-error")).to_have_text("Width: Say how many pixels.")
        expect(page.locator("#width")).to_be_focused()
    expect(page.locator("#code")).to_be_hidden()
    assert not any(url.endswith("/generations") for url in asked)
    page.locator("#width").fill("512")
    page.locator("#open-code").click()
    expect(page.locator("#code-text")).to_contain_text("512")


def test_no_later_picture_has_a_seed_that_the_page_cannot_hold(page: Page) -> None:
    choose(page, "images", 4)
    page.locator("#prompt").fill(PROMPT)
    page.locator("#seed").fill("9007199254740989")
    page.locator("#open-code").click()
    expect(page.locator("#seed-error")).to_contain_text("up to 9,007,199,254,740,988")
    page.locator("#seed").fill("9007199254740988")
    page.locator("#open-code").click()
    expect(page.locator("#code-text")).to_contain_text('"seed": 9007199254740988')


def test_a_key_held_down_acts_once(page: Page) -> None:
    page.locator("#stage").focus()
    page.keyboard.down("l")
    for _ in range(3):
        page.keyboard.down("l")
    expect(page.locator("#seed-lock")).to_have_attribute("aria-pressed", "true")
    page.keyboard.up("l")


def test_pictures_that_the_browser_does_not_remove_stay(page: Page) -> None:
    draw(page)
    page.evaluate(
        """() => { IDBObjectStore.prototype.delete = () => { throw new DOMException("The disk is gone."); }; }"""
    )
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(page.locator("#toast")).to_have_text("This browser did not remove them: The disk is gone.")
    expect(page.locator("#easel figure")).to_have_count(1)
    expect(page.locator("#pictures li")).to_have_count(1)


def test_a_comparison_ends_with_its_picture(page: Page) -> None:
    draw(page)
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#comparing")).to_be_visible()
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(page.locator("#comparing")).to_be_hidden()


def test_usage_that_cannot_be_read_says_why(context: BrowserContext, watch: Watch) -> None:
    page = opened(context, watch)
    page.route(
        "**/v2/usage**", lambda route: route.fulfill(status=503, json={"error": {"message": "The disk is full."}})
    )
    watch.allowed = ("503",)
    page.locator("#open-account").click()
    expect(page.locator("#usage-chart")).to_have_text("The disk is full.")


def test_no_code_is_shown_with_another_seed_than_the_one_typed(page: Page) -> None:
    page.locator("#prompt").fill(PROMPT)
    page.locator("#seed").fill("9007199254740993")
    page.locator("#open-code").click()
    expect(page.locator("#seed-error")).to_contain_text("the API takes larger ones")
    expect(page.locator("#code")).to_be_hidden()
    page.locator("#seed").fill("9007199254740991")
    page.locator("#open-code").click()
    expect(page.locator("#code-text")).to_contain_text('"seed": 9007199254740991')
    expect(page.locator("#seed-error")).to_be_hidden()


def test_a_pictures_code_names_its_seed(page: Page) -> None:
    choose(page, "images", 2)
    draw(page)
    seed = int(facts(page)["Seed"])
    page.locator("#easel button").nth(1).click()
    page.locator("#act-code").click()
    expect(page.locator("#code-text")).to_contain_text(f'"seed": {seed + 1}')
    expect(page.locator("#code-text")).not_to_contain_text("num_images")
    page.keyboard.press("Tab")
    page.locator("#tab-curl").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tab-requests")).to_be_focused()
    expect(page.locator("#code-text")).to_contain_text("import requests")


# --- keys, models, safety --------------------------------------------------------------------------------------------


def test_a_key_of_ones_own(page: Page, watch: Watch) -> None:
    watch.allowed = ("status of 401",)
    page.locator("#open-account").click()
    expect(page.locator("#account-now")).to_contain_text("no key is needed")
    page.get_by_label("API key", exact=True).fill("f" * 32)
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#key-error")).to_contain_text("valid API key")
    page.get_by_label("API key", exact=True).fill(KEY)
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#account-now")).to_contain_text(f"with the key {KEY[:8]}…")
    assert page.evaluate("[sessionStorage.getItem('zturbo.key'), localStorage.getItem('zturbo.key')]") == [KEY, None]
    page.keyboard.press("Escape")
    with page.expect_request("**/v1/images/generations") as sent:
        draw(page)
    assert sent.value.headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in page.content()
    page.locator("#open-account").click()
    page.get_by_role("button", name="Forget it").click()
    expect(page.locator("#account-now")).to_contain_text("no key is needed")
    assert page.evaluate("sessionStorage.getItem('zturbo.key')") is None


@pytest.mark.parametrize("text", ["", KEY + "\u200b", KEY[:8] + "…", KEY[:8] + " " + KEY[8:]], ids=range(4))
def test_a_text_that_can_be_no_key_is_refused(page: Page, text: str) -> None:
    """What a copied text may hide, no header can carry: kept, it would break every request."""
    page.locator("#open-account").click()
    page.get_by_label("API key", exact=True).fill(text)
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#key-error")).to_contain_text("This is no API key")
    expect(page.locator("#toast")).to_be_hidden()
    assert page.evaluate("sessionStorage.getItem('zturbo.key')") is None


def test_a_key_that_breaks_every_request_can_be_forgotten(page: Page) -> None:
    page.evaluate("sessionStorage.setItem('zturbo.key', 'k\u200b')")
    page.reload()
    expect(page.locator("#form-error")).to_contain_text("could not be read")
    page.locator("#open-account").click()
    page.get_by_role("button", name="Forget it").click()
    page.reload()
    page.wait_for_selector("html[data-ready]")


def test_only_the_server_says_that_a_key_works(page: Page, watch: Watch) -> None:
    watch.allowed = ("status of 503",)
    page.route("**/v1/billing/*", lambda route: route.fulfill(status=503, json={"message": "later"}))
    page.locator("#open-account").click()
    page.get_by_label("API key", exact=True).fill(KEY)
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#toast")).to_contain_text("did not say whether it works")
    page.unroute("**/v1/billing/*")
    page.get_by_label("API key", exact=True).fill(KEY)
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#toast")).to_have_text("The key works.")


def test_pressing_twice_installs_no_refused_key(page: Page, watch: Watch) -> None:
    watch.allowed = ("status of 401",)
    page.locator("#open-account").click()
    page.get_by_label("API key", exact=True).fill(KEY)
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#account-now")).to_contain_text(f"with the key {KEY[:8]}…")
    page.get_by_label("API key", exact=True).fill("f" * 32)
    page.get_by_role("button", name="Use it").dblclick()
    expect(page.locator("#key-error")).to_contain_text("valid API key")
    assert page.evaluate("sessionStorage.getItem('zturbo.key')") == KEY


def test_a_kept_key_outlives_the_tab(page: Page, watch: Watch) -> None:
    page.locator("#open-account").click()
    page.get_by_label("API key", exact=True).fill(KEY)
    page.get_by_label("Keep it in this browser").check()
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#account-now")).to_contain_text(f"with the key {KEY[:8]}…")
    again = opened(page.context, watch)
    again.locator("#open-account").click()
    expect(again.locator("#account-now")).to_contain_text(f"with the key {KEY[:8]}…")


def test_balance_and_days_of_use(page: Page) -> None:
    draw(page)
    page.locator("#open-account").click()
    expect(page.locator("#account-balance")).to_contain_text("Balance")
    expect(page.locator("#usage-chart svg")).to_be_visible()
    rows = page.locator("#usage-chart tr").all_inner_texts()
    assert len(rows) == 8
    assert rows[-1].split()[1] != "0"


def test_a_server_that_denies_usage_is_told(page: Page, watch: Watch) -> None:
    watch.allowed = ("status of 403", "status of 404")
    page.route("**/v2/usage*", lambda route: route.fulfill(status=403, json={"message": "no"}))
    page.route("**/v1/billing/*", lambda route: route.fulfill(status=404, json={"message": "no"}))
    page.locator("#open-account").click()
    expect(page.locator("#usage-chart")).to_have_text("This key may not read its usage.")


def test_a_session_that_ended_is_opened_anew(page: Page, watch: Watch, playground: Playground) -> None:
    watch.allowed = ("status of 401",)
    draw(page)
    playground.app.state.sessions._ends.clear()  # as after a restart
    page.locator("#act-vary").click()
    expect(page.locator("#pictures li")).to_have_count(2)


def test_a_server_for_others_asks_for_a_key(context: BrowserContext) -> None:
    with serving(host="0.0.0.0") as public:
        watch = Watch(public.url, allowed=("status of 403", "status of 401"))
        page = opened(context, watch)
        start(page)
        expect(page.locator("#account")).to_be_visible()
        expect(page.locator("#account-now")).to_contain_text("Paste an API key")
        page.get_by_label("API key", exact=True).fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("#account-now")).to_contain_text("with the key")
        page.keyboard.press("Escape")
        draw(page)
        assert watch.found() == []


def test_nano_says_what_it_is_and_how_to_switch(
    context: BrowserContext, watch: Watch, playground: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(playground.engine.model, "is_nano", True)
    monkeypatch.setattr(playground.engine.model, "version", "nano@0123456789abcdef")
    page = opened(context, watch)
    expect(page.locator("#model")).to_contain_text("nano")
    page.locator("#model").click()
    expect(page.locator("#model-about")).to_contain_text("12 million parameters")
    expect(page.locator("#model-about code").last).to_have_text("zturbo serve --model z-image-turbo")
    expect(page.locator("#model-about")).to_contain_text("nano@0123456789abcdef")
    page.keyboard.press("Escape")
    page.locator("#language").click()
    expect(page.locator("#examples button").first).to_contain_text("T-Rex")  # nano reads English only


def test_a_model_that_is_still_loading_is_waited_for(context: BrowserContext, watch: Watch) -> None:
    loading = threading.Event()
    page = context.new_page()
    watch.follow(page)

    def answer(route: Any) -> None:
        body = route.fetch().json()
        if not loading.is_set():
            body["data"][0]["tags"] = []
        route.fulfill(json=body)

    page.route("**/v1/models", answer)
    page.goto(f"{watch.home}/")
    expect(page.locator("#model")).to_contain_text("loading the model")
    loading.set()
    expect(page.locator("#model")).to_contain_text("instant")


def test_the_bar_names_the_model_that_drew_last(
    page: Page, playground: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that was started anew with another model."""
    expect(page.locator("#model-name")).to_have_text("instant")
    monkeypatch.setattr(playground.engine.model, "is_nano", True)
    monkeypatch.setattr(playground.engine.model, "version", "nano@0123456789abcdef")
    draw(page)
    expect(page.locator("#model-name")).to_have_text("nano")
    expect(page.locator("#model-kind")).to_have_text("small model")
    expect(page.locator("#model-text")).to_contain_text("nano@0123456789abcdef")


class Prude:
    """A checker that flags everything."""

    name, licence, source, version, threshold = "prude", "none", "tests", "00000000", 0.5

    def check(self, pixels: Any) -> Verdict:
        return Verdict(score=0.987, threshold=self.threshold)


def test_a_flagged_picture_says_so(context: BrowserContext) -> None:
    with serving(lambda: Safety(checker=Prude())) as strict:
        watch = Watch(strict.url)
        page = opened(context, watch)
        draw(page)
        expect(page.locator("#easel figcaption")).to_have_text("Withheld by the safety checker")
        expect(page.locator("#about .notice")).to_contain_text("Score 0.987, threshold 0.5.")
        assert set(shown(page)) == {0}
        assert watch.found() == []


# --- everybody can use it --------------------------------------------------------------------------------------------


def test_with_the_keyboard_alone(page: Page, playground: Playground) -> None:
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("a boat? /?vl")  # keys are letters while one types
    expect(page.locator("#help")).to_be_hidden()
    page.keyboard.press("Tab")  # to the chosen size
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ControlOrMeta+Enter")
    expect(page.locator("#about")).to_be_visible()
    assert facts(page)["Size"] == f"576 {TIMES} 1024"
    page.locator("#stage").focus()
    page.keyboard.press("v")
    expect(page.locator("#pictures li")).to_have_count(2)
    seed = facts(page)["Seed"]
    page.keyboard.press("ArrowRight")
    expect(page.locator("#pictures button").nth(1)).to_have_attribute("aria-current", "true")
    assert facts(page)["Seed"] != seed
    page.keyboard.press("f")
    expect(page.locator("#viewer")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("c")
    expect(page.locator("#code")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    expect(page.locator("#prompt")).to_be_focused()
    page.locator("#stage").focus()
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    page.locator("#single-keys").uncheck(force=True)
    page.keyboard.press("Escape")
    page.keyboard.press("v")
    page.keyboard.press("ControlOrMeta+Enter")
    expect(page.locator("#pictures li")).to_have_count(3)


def test_focus_follows_the_button_that_changes(page: Page, steps: Steps) -> None:
    page.locator("#prompt").fill(PROMPT)
    page.locator("#draw").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#cancel")).to_be_focused()
    steps.allow(8)
    expect(page.locator("#draw")).to_be_focused()


def test_focus_stays_near_what_is_drawn_anew(page: Page) -> None:
    choose(page, "images", 2)
    draw(page)
    easel = page.locator("#easel button")
    easel.nth(1).focus()
    page.keyboard.press("Enter")
    expect(easel.nth(1)).to_have_attribute("aria-pressed", "true")
    expect(easel.nth(1)).to_be_focused()
    page.locator("#act-save").focus()
    page.keyboard.press("ArrowRight")  # to the picture beside it
    expect(easel.nth(0)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#act-save")).to_be_focused()
    page.locator("#act-remove").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#stage")).to_be_focused()


@pytest.mark.parametrize("button", ["#act-vary", "#act-again", "#examples button >> nth=0"])
def test_focus_follows_a_button_that_draws(page: Page, steps: Steps, button: str) -> None:
    if "act" in button:
        steps.allow(8)
        draw(page)
    page.locator(button).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#cancel")).to_be_focused()
    steps.allow(8)
    expect(page.locator("#draw")).to_be_focused()


def test_a_dialog_closes_by_a_click_beside_it_and_by_none_inside(page: Page) -> None:
    page.locator("#open-help").click()
    box = page.locator("#help").bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.click(box["x"] + 8, middle)  # its padding
    page.mouse.click(box["x"] + box["width"] - 4, middle)
    expect(page.locator("#help")).to_be_visible()
    page.mouse.click(box["x"] - 8, middle)
    expect(page.locator("#help")).to_be_hidden()


def test_what_is_told_is_seen_and_heard_over_a_dialog(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#prompt").fill(PROMPT)
    page.locator("#open-code").click()
    page.evaluate(
        """() => {
            window.seen = [];
            const toast = document.getElementById("toast");
            const note = () => seen.push([toast.hidden, toast.textContent]);
            new MutationObserver(note).observe(toast, { attributes: true, childList: true });
        }"""
    )
    page.locator("#copy-code").click()
    expect(page.locator("#code #toast")).to_have_text("Copied.")
    assert page.evaluate("seen") == [[False, ""], [False, "Copied."]]
    on_top = """(box) => {
        const { x, y, width, height } = box.getBoundingClientRect();
        return box.contains(document.elementFromPoint(x + width / 2, y + height / 2));
    }"""
    assert page.locator("#toast").evaluate(on_top)
    page.keyboard.press("Escape")
    drop(page, "x.png", "image/png", b"no picture")
    expect(page.locator("body > #toast")).to_have_text("No settings were found in this file.")


def test_contrast_themes_show_what_is_chosen(browser: Browser, watch: Watch) -> None:
    context = browser.new_context(locale="en-US", forced_colors="active", reduced_motion="reduce")
    page = opened(context, watch)
    page.locator("#expansion").check(force=True)
    page.locator("#safety").uncheck(force=True)

    def ground(selector: str) -> str:
        return str(page.locator(selector).first.evaluate("(element) => getComputedStyle(element).backgroundColor"))

    for chosen, other in {
        ".shapes :checked + .tile": ".shapes :not(:checked) + .tile",
        ".segments :checked + span": ".segments :not(:checked) + span",
        ".switch input:checked": ".switch input:not(:checked)",
    }.items():
        assert ground(chosen) != ground(other), chosen
    assert page.locator(".switch input").first.evaluate("(one) => getComputedStyle(one).borderTopWidth") == "1px"
    context.close()


def test_prompts_run_in_the_direction_of_their_script(page: Page) -> None:
    draw(page, "سفينة حمراء")
    for selector in ("#prompt", "#about .prompt"):
        expect(page.locator(selector)).to_have_css("direction", "rtl")


def test_focus_stays_with_a_picture_that_is_looked_at_meanwhile(page: Page, steps: Steps) -> None:
    steps.allow(8)
    draw(page)
    start(page, "another prompt")
    page.locator("#pictures button").click()
    page.locator("#act-save").focus()
    steps.allow(8)
    expect(page.locator("#about .prompt")).to_have_text("another prompt")
    expect(page.locator("#draw")).to_be_visible()
    expect(page.locator("#act-save")).to_be_focused()


DIALOGS = {"#open-code": "#code", "#open-account": "#account", "#model": "#model-about", "#open-help": "#help"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_no_serious_barriers(browser: Browser, watch: Watch, scheme: Any, language: str) -> None:
    size = {"width": 1280, "height": 900} if language == "en-US" else {"width": 380, "height": 800}
    context = browser.new_context(color_scheme=scheme, locale=language, reduced_motion="reduce", viewport=size)  # type: ignore[arg-type]
    page = opened(context, watch)
    found = barriers(page, "empty")
    draw(page)
    found += barriers(page, "drawn")
    for opener, dialog in DIALOGS.items():
        page.locator(opener).click()
        expect(page.locator(dialog)).to_be_visible()
        found += barriers(page, dialog)
        page.keyboard.press("Escape")
    page.locator("#act-full").click()
    found += barriers(page, "full size")
    page.keyboard.press("Escape")
    page.locator("#act-vary").click()
    expect(page.locator("#pictures li")).to_have_count(2)
    page.locator("#act-compare").click()
    page.locator("#pictures button").nth(1).click()
    found += barriers(page, "compare")
    context.close()
    assert found == []


def barriers(page: Page, where: str) -> list[str]:
    """What axe-core calls serious, or worse."""
    found = Axe().run(page).response["violations"]
    return [
        f"{where}: {one['id']}: {node['target']} {node['failureSummary']}"
        for one in found
        if one["impact"] in SERIOUS
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("width", [380, 768, 1280, 1920, 2560])
def test_no_width_is_too_narrow_or_too_wide(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    choose(page, "images", 4)
    draw(page, "x" * 300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in ("#draw", "#prompt", "#easel figure >> nth=3", "#about"):
        box = page.locator(selector).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


def test_english_and_chinese(browser: Browser, watch: Watch) -> None:
    context = browser.new_context(locale="zh-CN")
    page = opened(context, watch)
    expect(page.locator("html")).to_have_attribute("lang", "zh-Hans")
    expect(page.locator("#draw")).to_contain_text("生成")
    expect(page.locator("#prompt")).to_have_attribute("placeholder", re.compile("想要一幅什么样的画面"))
    draw(page, "一艘红色的小船")
    expect(page.locator("#about")).to_contain_text("种子")
    page.locator("#language").click()
    expect(page.locator("#draw")).to_contain_text("Draw")
    expect(page.locator("#about")).to_contain_text("Seed")
    expect(page.locator("#prompt")).to_have_value("一艘红色的小船")
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    context.close()


def test_light_dark_and_no_motion(browser: Browser, watch: Watch, steps: Steps) -> None:
    context = browser.new_context(color_scheme="dark", locale="en-US", reduced_motion="reduce")
    page = opened(context, watch)
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.locator("#theme").click()
    light = page.evaluate(ground)
    assert light != dark
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate(ground) == light
    start(page)
    steps.allow(1)
    expect(page.locator(".frame.seen")).to_be_visible()
    for selector in (".waiting", ".preview", ".track div"):
        expect(page.locator(selector).first).to_have_css("animation-name", "none")
    steps.allow(7)
    expect(page.locator("#about")).to_be_visible()
    context.close()
