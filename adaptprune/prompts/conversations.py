"""The conversation formats of the original LLaVA checkpoints, as chat templates of stock processors.

They repeat llava/conversation.py of haotian-liu/LLaVA, images in front of the text of their turn.
"""

from __future__ import annotations

_CONTENT = (
    "{%- macro show(content) -%}"
    "{%- if content is string -%}{{ content }}"
    "{%- else -%}"
    "{%- for part in content if part.type == 'image' -%}{{ image + '\n' }}{%- endfor -%}"
    "{%- for part in content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}"
    "{%- endif -%}"
    "{%- endmacro -%}"
    "{%- set system = messages[0].content if messages[0].role == 'system' else default_system -%}"
    "{%- set system = system if system is string else system[0].text -%}"
    "{%- set turns = messages[1:] if messages[0].role == 'system' else messages -%}"
)
_VICUNA = (
    "{{ system + ' ' }}"
    "{%- for turn in turns -%}"
    "{%- if turn.role == 'user' -%}{{ 'USER: ' + show(turn.content) + ' ' }}"
    "{%- else -%}{{ 'ASSISTANT: ' + show(turn.content) + '</s>' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
)
_LLAMA_2 = (
    "{%- for turn in turns -%}"
    "{%- if turn.role == 'user' -%}"
    "{{ ('' if loop.first else separator) + '[INST] ' }}"
    "{%- if loop.first and system -%}{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{%- endif -%}"
    "{{ show(turn.content) + ' [/INST]' }}"
    "{%- else -%}{{ ' ' + show(turn.content) + ' </s>' }}{%- endif -%}"
    "{%- endfor -%}"
)
_CHATML = (
    "{{ '<|im_start|>system\n' + system + '<|im_end|>' }}"
    "{%- for turn in turns -%}{{ '<|im_start|>' + turn.role + '\n' + show(turn.content) + '<|im_end|>' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
#: Conversation by name: system prompt, template, what stands between turns.
CONVERSATIONS = {
    "vicuna_v1": (
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions.",
        _VICUNA,
        "",
    ),
    "mistral_instruct": ("", _LLAMA_2, ""),
    "llama_2": (
        "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
        "provides, and assist the user with a variety of tasks using natural language.",
        _LLAMA_2,
        "<s>",
    ),
    "chatml_direct": ("Answer the questions.", _CHATML, ""),
}


def chat_template(name: str, image: str) -> str:
    """The Jinja template of a conversation, with `image` where an image stands."""
    system, template, separator = CONVERSATIONS[name]
    values = f"{{%- set image = {image!r} -%}}{{%- set default_system = {system!r} -%}}"
    return f"{values}{{%- set separator = {separator!r} -%}}{_CONTENT}{template}"
