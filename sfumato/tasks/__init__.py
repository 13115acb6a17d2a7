"""Tasks: a Request becomes Pictures."""

from sfumato.core.registry import Registry

TASKS = Registry(kind="task", targets={"text_to_image": "sfumato.tasks.text_to_image:text_to_image"})
"""What can be asked for; each is ``task(model, request, on_step, refiner)``."""
