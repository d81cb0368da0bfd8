"""The Litestar application: its routes, and what starts and stops with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncGenerator
from importlib.metadata import version
from typing import Any

from litestar import Litestar, Request, Response, get
from litestar.config.cors import CORSConfig
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.response import Redirect
from litestar.types import ASGIApp

from tunery.gateway.api.adapters import list_adapters, load_adapter, unload_adapter
from tunery.gateway.api.admin import ADMIN_HANDLERS
from tunery.gateway.api.admin.plane import Planes
from tunery.gateway.api.admin.sharing import share_adapter, unshare_adapter
from tunery.gateway.api.batches import cancel_batch, create_batch, list_batches, show_batch
from tunery.gateway.api.chat import chat_completions
from tunery.gateway.api.completions import completions
from tunery.gateway.api.embeddings import embeddings
from tunery.gateway.api.eval_runs import (
    cancel_run,
    cancel_run_as_before,
    create_run,
    delete_run,
    list_items,
    list_runs,
    show_item,
    show_run,
)
from tunery.gateway.api.evals import change_eval, create_eval, delete_eval, list_evals, show_eval
from tunery.gateway.api.files import create_file, delete_file, file_content, file_findings, list_files, show_file
from tunery.gateway.api.fine_tuning import (
    cancel_job,
    create_job,
    list_checkpoints,
    list_events,
    list_jobs,
    pause_job,
    resume_job,
    show_job,
)
from tunery.gateway.api.health import OPERATION, live, metrics, ready
from tunery.gateway.api.http.authentication import Authentication, principal_of
from tunery.gateway.api.http.docs_page import DocsPage
from tunery.gateway.api.http.errors import EXCEPTION_HANDLERS
from tunery.gateway.api.http.guards import Guard
from tunery.gateway.api.http.middleware import RequestMiddleware
from tunery.gateway.api.http.openapi import complete_document
from tunery.gateway.api.http.trace import trace_of
from tunery.gateway.api.models import delete_model, list_models, show_model
from tunery.gateway.api.responses import create_response, delete_response, list_input_items, show_response
from tunery.gateway.api.state import Gateway
from tunery.gateway.api.uploads import add_upload_part, cancel_upload, complete_upload, create_upload
from tunery.gateway.api.usage import completions_usage, embeddings_usage
from tunery.gateway.batches.runner import BatchRunner
from tunery.gateway.evals.runner import EvalRunner
from tunery.gateway.preload import Preloader
from tunery.gateway.tenancy.credentials import Credentials, open_credentials
from tunery.gateway.tenancy.keyring import Keyring
from tunery.gateway.tenancy.limits.compute_guard import ComputeGuard
from tunery.gateway.tenancy.principal import Principal

__all__ = ["create_app"]

MAX_BODY = 16 * 2**20
"""Bytes of a request body."""

HANDLERS = (
    chat_completions,
    create_response,
    show_response,
    delete_response,
    list_input_items,
    completions,
    embeddings,
    list_models,
    show_model,
    delete_model,
    list_adapters,
    load_adapter,
    unload_adapter,
    share_adapter,
    unshare_adapter,
    create_file,
    list_files,
    show_file,
    file_content,
    file_findings,
    delete_file,
    create_upload,
    add_upload_part,
    complete_upload,
    cancel_upload,
    create_batch,
    list_batches,
    show_batch,
    cancel_batch,
    create_job,
    list_jobs,
    show_job,
    cancel_job,
    pause_job,
    resume_job,
    list_checkpoints,
    list_events,
    create_eval,
    list_evals,
    show_eval,
    change_eval,
    delete_eval,
    create_run,
    list_runs,
    show_run,
    cancel_run,
    cancel_run_as_before,
    delete_run,
    list_items,
    show_item,
    completions_usage,
    embeddings_usage,
    live,
    ready,
    metrics,
    *ADMIN_HANDLERS,
)


@get("/", include_in_schema=False)
async def root() -> Redirect:
    """Redirect to the documentation."""
    return Redirect("/docs")


def _allowed_methods(request: Request[Any, Any, Any]) -> Response[None]:
    """The answer to OPTIONS. Litestar's own names only the method of a path's first handler."""
    (path,) = request.route_handler.paths
    methods = sorted(request.app.route_handler_method_map[path])
    return Response(None, status_code=204, headers={"allow": ", ".join(methods)})


@contextlib.asynccontextmanager
async def _running(gateway: Gateway, credentials: Credentials | None) -> AsyncGenerator[None, None]:
    """Everything that works beside requests, from start to end."""
    if credentials is not None:
        await credentials.start()
    await gateway.shares.start()
    await gateway.usage.start()
    await gateway.limiter.start()
    preloader = Preloader(
        gateway.settings.preload if gateway.is_first else (), engine=gateway.engine, resolver=gateway.resolver
    )
    gateway.engine.on_stats(lambda stats: gateway.metrics.update_engine(gateway.engine.ready, stats))
    gateway.engine.on_stats(preloader.on_stats)
    await gateway.engine.start()
    await asyncio.to_thread(gateway.renderer.prepare)
    await gateway.file_checks.catch_up()
    batches = BatchRunner(gateway)
    evaluations = EvalRunner(gateway, owner=f"{socket.gethostname()}:{os.getpid()}")
    guard = ComputeGuard(
        gateway.registry, gateway.limiter.book, now=gateway.usage.now, on_refused=gateway.metrics.count_limit
    )
    if gateway.is_first:
        batches.start()
        evaluations.start()
        guard.start()
    try:
        yield
    finally:
        gateway.draining = gateway.refusing = True
        await batches.stop()
        await evaluations.stop()
        await guard.stop()
        await preloader.stop()
        if credentials is not None:
            await credentials.stop()
        await gateway.shares.stop()
        await gateway.file_checks.stop()
        gateway.workers.close()
        await gateway.engine.stop()
        await gateway.limiter.stop()
        # After all that uses anything.
        await gateway.usage.stop()
        gateway.registry.close()


def create_app(gateway: Gateway) -> ASGIApp:
    """An application that serves the gateway's parts; it starts and stops the engine, and closes the registry."""

    async def provide_gateway() -> Gateway:
        return gateway

    async def provide_principal(request: Request[Any, Any, Any]) -> Principal:
        return principal_of(request)

    guard = Guard(gateway.settings)
    credentials = (
        open_credentials(gateway.registry, gateway.oidc, own_key=gateway.own_key) if gateway.settings.auth else None
    )
    if credentials is not None and isinstance(credentials.keys, Keyring):
        gateway.keyring = credentials.keys
    authentication = Authentication(credentials, anyone=Principal(tenant=gateway.jobs.tenant), shares=gateway.shares)

    async def before_request(request: Request[Any, Any, Any]) -> Response[None] | None:
        guard.check_source(request)
        if not request.route_handler.opt.get(OPERATION):
            gateway.check_accepting()
        if request.method == "OPTIONS":
            return _allowed_methods(request)
        await authentication.check(request)
        sender = principal_of(request)
        trace_of(request).note_sender(tenant=sender.tenant, key=sender.key)
        await guard.check_body(request)
        return None

    @contextlib.asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncGenerator[None, None]:
        async with _running(gateway, credentials):
            yield

    app = Litestar(
        route_handlers=[root, *HANDLERS],
        dependencies={"gateway": Provide(provide_gateway), "principal": Provide(provide_principal)},
        exception_handlers=EXCEPTION_HANDLERS,
        before_request=before_request,
        cors_config=CORSConfig(allow_origins=list(origins)) if (origins := gateway.settings.allowed_origins) else None,
        lifespan=[lifespan],
        openapi_config=OpenAPIConfig(
            title="Tunery",
            version=version("tunery"),
            description="Fine-tunes of one quantized base, each request naming its adapter.",
            path="/docs",
            render_plugins=[DocsPage()],
        ),
        request_max_body_size=MAX_BODY,
        logging_config=None,
    )
    gateway.metrics.add_routes(complete_document(app.openapi_schema))
    planes = Planes(app, separate=bool(gateway.settings.admin_port))
    around = RequestMiddleware(
        gateway.settings,
        gateway.metrics,
        in_flight=gateway.requests,
        leaving=lambda: gateway.draining,
        tracer=gateway.tracer,
    )
    return around(planes)
