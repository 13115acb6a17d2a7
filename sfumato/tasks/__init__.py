"""Tasks: a Request becomes Pictures."""

from sfumato.core.registry import Registry

TASKS = Registry(
    kind="task",
    targets={
        "text_to_image": "sfumato.tasks.text_to_image:Drawing",
        "image_to_image": "sfumato.tasks.image_to_image:Redrawing",
        "inpaint": "sfumato.tasks.inpaint:Inpainting",
        "depth_to_image": "sfumato.tasks.depth_to_image:DepthToImage",
        "upscale": "sfumato.tasks.upscale:Upscaling",
    },
)
"""What can be asked for; each is a ``tasks.text_to_image.Drawing``."""
