"""Text environments for Gymnasium: observations are messages, actions are whole responses. Any agent may use them.

Importing this package registers `rlhf/Prompts-v0` and `rlhf/Dialogue-v0`. No policy, tokenizer or training is here: it
may import `reward_models`, never `rlhf`.
"""

from envs.base import Opening, Reply, TextEnv
from envs.errors import TextEnvError
from envs.listing import RegisteredEnv, list_envs
from envs.registry import make_text_env, register_all
from envs.spaces import UnicodeText
from envs.token_level import TokenLevel
from envs.vector import TextVectorEnv

__all__ = [
    "Opening",
    "RegisteredEnv",
    "Reply",
    "TextEnv",
    "TextEnvError",
    "TextVectorEnv",
    "TokenLevel",
    "UnicodeText",
    "list_envs",
    "make_text_env",
]

register_all()
