"""Text-generation environments for Gymnasium. May import `reward_models`, never `rlhf`.

Importing this package registers `rlhf/Prompts-v0` and `rlhf/Dialogue-v0`.
"""

from envs.base import Opening, Reply, TextEnv
from envs.errors import TextEnvError
from envs.registry import RegisteredEnv, list_envs, make_text_env, register_all
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
