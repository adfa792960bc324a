"""Serve a model from many replicas on a Ray cluster: our server app in each, Ray's proxy and autoscaler before them.

    pip install 'depthdial[serve]' 'ray[serve]'
    python examples/serve_on_ray.py [--model M] [--plugin P] [--replicas 2] [--most 8] [--gpus 1] [--port 8000]

Every replica is a whole server with an engine of its own, so each request, its stream and its depths come from one of
them, and `/metrics` tells of the replica that answers it: read them one by one from Ray's own metrics, or add up.
`depthdial bench` says how many texts at a time are worth having on one device; that is --max-batch here.
"""

from __future__ import annotations

import argparse
from threading import Event
from typing import Any

from depthdial.cli.options import prompt_budget_of
from depthdial.serve.app import make_app
from depthdial.serve.settings import EngineSettings, RequestLimits, ServerSettings


def application(settings: ServerSettings, replicas: int, most: int, cpus: float = 1, gpus: float = 0) -> Any:
    """A Ray Serve application of `replicas` to `most` servers, each on `cpus` cores and `gpus` GPUs."""
    from ray import serve  # pyright: ignore[reportMissingImports] - asked for by this example alone

    busy = settings.engine.max_batch
    deployment = serve.deployment(
        name="depthdial",
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        # a replica is full when its batch is; what waits beyond that waits with the replica that takes it next
        max_ongoing_requests=busy + max(1, busy // 4),
        autoscaling_config={
            "min_replicas": replicas,
            "max_replicas": most,
            "target_ongoing_requests": busy * 0.75,
            "upscale_delay_s": 5,
            "downscale_delay_s": 120,
        },
        graceful_shutdown_timeout_s=settings.limits.timeout,
    )
    # given as a function, the app is built in the replica, where its lifespan starts the engine's process
    return deployment(serve.ingress(lambda: make_app(settings))()).bind()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--plugin", default="default")
    parser.add_argument("--budget", type=float, help="true cost of what is written")
    parser.add_argument("--prompt-budget", type=prompt_budget_of, help="of what is read: a number, or same [1.0]")
    parser.add_argument("--replicas", type=int, default=2, help="at least")
    parser.add_argument("--most", type=int, default=8, help="replicas under load")
    parser.add_argument("--cpus", type=float, default=1, help="cores of one replica")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of one replica")
    parser.add_argument("--max-batch", type=int, default=16, help="texts generated at a time by one replica")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()

    import ray  # pyright: ignore[reportMissingImports]
    from ray import serve  # pyright: ignore[reportMissingImports]

    engine = EngineSettings(
        args.model, args.plugin, args.budget, max_batch=args.max_batch, prompt_budget=args.prompt_budget
    )
    settings = ServerSettings(engine, RequestLimits())
    ray.init(ignore_reinit_error=True)
    serve.start(http_options={"host": args.host, "port": args.port})
    serve.run(application(settings, args.replicas, args.most, args.cpus, args.gpus))
    print(f"depthdial serves {settings.name} on Ray at http://{args.host}:{args.port}", flush=True)
    try:
        Event().wait()
    except KeyboardInterrupt:
        serve.shutdown()


if __name__ == "__main__":
    main()
