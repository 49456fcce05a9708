"""The prompts, as versioned templates, and what fills them."""

from qimeng_tvm.llm.prompts.render import Prompt, intrinsic_prompt, names, render

__all__ = ["Prompt", "intrinsic_prompt", "names", "render"]
