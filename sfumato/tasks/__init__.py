"""Tasks: a Request becomes Pictures."""

from sfumato.core.registry import Registry

TASKS = Registry(
    kind="task",
    targets={
        "text_to_image": "sfumato.tasks.text_to_image:Drawing",
        "image_to_image": "sfumato.tasks.image_to_image:Redrawing",
        "inpaint": "sfumato.tasks.inpaint:Inpainting",
    },
)
"""What can be asked for; each is a ``tasks.text_to_image.Drawing``."""
