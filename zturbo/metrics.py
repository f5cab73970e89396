"""What the server counts, for Prometheus: `Metrics` has them all, `/metrics` prints them. No prompt is among them."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The server's counters; one per process, each with a registry of its own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._parts: dict[tuple[Any, tuple[str, ...]], Any] = {}
        self.requests = Counter("zturbo_requests_total", "Requests by how they ended.", ["outcome"], registry=registry)
        self.responses = Counter("zturbo_responses_total", "HTTP answers by status.", ["status"], registry=registry)
        self.images = Counter("zturbo_images_total", "Pictures delivered.", registry=registry)
        self.flagged = Counter(
            "zturbo_images_flagged_total", "Pictures that the safety checker withheld.", registry=registry
        )
        self.credits = Counter("zturbo_credits_total", "Credits charged.", registry=registry)
        self.pixel_steps = Counter(
            "zturbo_pixel_steps_total", "Pixels times denoising steps of delivered pictures.", registry=registry
        )
        self.queue = Histogram(
            "zturbo_queue_seconds", "Seconds that requests waited for the engine.", buckets=_SECONDS, registry=registry
        )
        self.stage = Histogram(
            "zturbo_stage_seconds",
            "Seconds of a request by stage and size; all its pictures together.",
            ["stage", "size"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.encode = Histogram(
            "zturbo_file_encode_seconds",
            "Seconds to encode one picture file, by format.",
            ["format"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.waiting = Gauge("zturbo_queue_length", "Requests that wait now.", registry=registry)

    def answered(self, status: int) -> None:
        """Book one HTTP answer."""
        self._of(self.responses, str(status)).inc()

    def ended(self, outcome: str) -> None:
        """Book one request's end."""
        self._of(self.requests, outcome).inc()

    def encoded(self, output_format: str, seconds: float) -> None:
        """Book one picture file."""
        self._of(self.encode, output_format).observe(seconds)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)

    def delivered(self, seconds: dict[str, float], width: int, height: int, steps: int, images: int) -> None:
        """Book one delivered request.

        Args:
            seconds: by stage, as the answer's `timings`.
            width, height: pixels of each picture.
        """
        size = _size_class(width * height)
        for stage, value in seconds.items():
            if stage == "queue":
                self.queue.observe(value)
            elif stage != "total":
                self._of(self.stage, stage, size).observe(value)
        self.images.inc(images)
        self.pixel_steps.inc(width * height * steps * images)

    def _of(self, metric: Any, *labels: str) -> Any:
        """A metric's part of these labels. The library's own look-up takes a lock and several times as long."""
        found = self._parts.get((metric, labels))
        if found is None:
            found = self._parts[metric, labels] = metric.labels(*labels)
        return found


def _size_class(pixels: int) -> str:
    """Few classes, so that a client cannot make thousands of time series."""
    megapixels = pixels / 2**20
    return next((f"<={edge:g}MP" for edge in (0.25, 0.5, 0.75, 1, 2, 4) if megapixels <= edge), ">4MP")
