"""A running server: its workspaces, its models, its threads."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

from fastapi import Request

from mmrr.api import Workspace
from mmrr.modeling.loaded import Loaded
from mmrr.serve.batching import Batcher
from mmrr.serve.errors import log
from mmrr.serve.jobs import Jobs
from mmrr.serve.metrics import Metrics
from mmrr.serve.models import Models
from mmrr.serve.settings import Settings
from mmrr.serve.thumbnails import Thumbnails
from mmrr.serve.turns import Turns
from mmrr.types import Progress


class Service:
    """What the routes use. It is a context manager: its threads run inside."""

    def __init__(self, settings: Settings) -> None:
        """Open the workspaces. Raises MmrrError if one is none, or if the server would be open to others."""
        settings.check()
        self.settings = settings
        self.metrics = Metrics()
        self._stack = ExitStack()
        self._loaded = Loaded()
        turns = Turns()
        self._workspaces = {
            name: self._stack.enter_context(
                Workspace(
                    folder,
                    create=not settings.read_only and _is_empty(folder),
                    machine=settings.machine,
                    loaded=self._loaded,
                    steady=True,
                    read_only=settings.read_only,
                )
            )
            for name, folder in settings.workspaces.items()
        }
        self.models = Models(settings, self._workspaces, self._loaded)
        self.batcher = Batcher(settings.limits, self.metrics, turns)
        self.jobs = Jobs(self._open, settings.render, settings.limits, self.metrics, turns)
        self.thumbnails = Thumbnails()
        self.ready = threading.Event()

    def _open(self, name: str, progress: Progress) -> Workspace:
        """A second handle of a workspace, for the thread that adds documents."""
        return self._workspaces[name].beside(progress)

    def start(self) -> None:
        self.batcher.start()
        if not self.settings.read_only:
            self.jobs.start()

    async def warm_up(self) -> None:
        """Load the models before the first request; later requests wait for it in the queue."""
        try:
            await self.batcher.answer("warm-up", ("warm-up",), self.models.warm_up, None)
        except Exception as error:  # the server answers what it can
            log.error("the models could not be loaded: %s", error)
        else:
            self.ready.set()

    def stop(self) -> None:
        self.jobs.stop()
        self.batcher.stop()
        self.models.close()
        self._stack.close()

    @staticmethod
    def client(request: Request) -> str:
        """Who asks, for the fair share of the queue."""
        return request.client.host if request.client else ""


def _is_empty(folder: Path) -> bool:
    """Whether a folder is there and empty, as a new volume of a container: it becomes a workspace."""
    return folder.is_dir() and not any(folder.iterdir())


def service_of(request: Request) -> Service:
    """The service that a request is for."""
    service: Service = request.app.state.service
    return service
