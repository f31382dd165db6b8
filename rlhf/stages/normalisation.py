"""End of the reward stage: mean and variance of the new model's scores on responses of the SFT policy.

PPO starts from that policy, so its first scores have mean 0 and variance 1. The responses are sampled from prompts of
the preference data, at temperature 1, each process its share.
"""

from collections.abc import Sequence

import numpy as np
import torch

from reward_models.chat import Text, encode_prompt
from reward_models.normalise import Normalisation
from reward_models.scalar import ScalarRewardModel
from rlhf.config.schema import Config
from rlhf.data.split import prompt_key
from rlhf.episodes.rollout import response_text
from rlhf.errors import StageError
from rlhf.files.run_folder import RunFolder
from rlhf.generation.noise import response_key
from rlhf.generation.rollout_policy import RolloutPolicy
from rlhf.generation.sampler import Request, Sampler, SamplingParameters
from rlhf.launch.deepspeed import barrier, gather, is_main_process, rank, world_size
from rlhf.models.load import load_policy, load_sequence_classifier, load_tokenizer
from rlhf.models.precision import uses_bfloat16
from rlhf.stages.base_model import policy_folder, policy_tokenizer
from rlhf.tracking.progress import StageProgress

__all__ = ["normalise", "sample_responses", "score_responses"]

_ITERATION = -2  # names the noise; training counts from 0, evaluation uses -1


def normalise(config: Config, folder: RunFolder, prompts: Sequence[Text]) -> Normalisation:
    """Sample responses, score them with the model in `folder.reward`, and write its `normalisation.json`.

    Args:
        config: `reward.normalisation_samples` responses are sampled.
        folder: Holds the SFT policy and the new reward model.
        prompts: To choose from; of equal ones one is taken.

    Raises:
        StageError: No prompt leaves the policy room for a response.
        RewardError: The scores do not differ.
    """
    asked, said = sample_responses(config, folder, prompts)
    raw = np.array(gather(score_responses(config, folder, asked, said)))
    normalisation = Normalisation.fit(raw[np.isfinite(raw)])  # whatever was too long for the model has no score
    if is_main_process():
        normalisation.save(folder.reward)
    barrier()
    return normalisation


def sample_responses(config: Config, folder: RunFolder, prompts: Sequence[Text]) -> tuple[list[Text], list[str]]:
    """Let the SFT policy respond; return this process's share of the prompts, and the responses to them."""
    assert config.reward is not None
    section, tokenizer = config.reward, policy_tokenizer(config, folder)
    policy = load_policy(config.model, tokenizer, folder=policy_folder(config, folder), seed=config.seed)
    positions = getattr(policy.config.get_text_config(), "max_position_embeddings", None) or 2**31
    distinct = list({prompt_key(prompt): prompt for prompt in prompts}.values())
    encoded = [(prompt, encode_prompt(tokenizer, prompt)) for prompt in distinct]
    fitting = [(prompt, ids) for prompt, ids in encoded if len(ids) < positions]
    if not fitting:
        raise StageError(f"no prompt of reward.data is shorter than the {positions} tokens that the policy reads")
    # Prompt after prompt, then second samples of each, until there are enough.
    numbers = range(section.normalisation_samples)[rank() :: world_size()]
    requests = [
        Request(
            prompt_ids=ids,
            key=response_key(config.seed, _ITERATION, ids, sample_index=number // len(fitting)),
            max_tokens=min(section.normalisation_max_response_tokens, positions - len(ids)),
        )
        for number in numbers
        for _, ids in [fitting[number % len(fitting)]]
    ]
    decoder = RolloutPolicy(policy.to(_device()).eval(), bf16=uses_bfloat16(config.model), sharded=False)
    sampler = Sampler(decoder.refresh(), SamplingParameters(stop_token_ids=(int(tokenizer.eos_token_id),)))
    sampled = []
    with StageProgress("reward", unit="responses to normalise by") as progress:
        progress.start(len(requests))
        for first in range(0, len(requests), sampler.parameters.batch_size):
            sampled += sampler(requests[first : first + sampler.parameters.batch_size])
            progress.update(len(sampled))
    asked = [fitting[number % len(fitting)][0] for number in numbers]
    return asked, [response_text(tokenizer, result) for result in sampled]


def score_responses(
    config: Config, folder: RunFolder, prompts: Sequence[Text], responses: Sequence[str]
) -> list[float]:
    """Raw scores of the model in `folder.reward`, in the precision in which it will be used."""
    assert config.reward is not None
    own = config.reward.model or config.model
    tokenizer = load_tokenizer(own, folder=folder.reward)
    dtype = torch.bfloat16 if uses_bfloat16(own) else torch.float32
    model = load_sequence_classifier(folder.reward, tokenizer, dtype=dtype).to(_device())
    scores: list[float] = ScalarRewardModel(model, tokenizer).raw_score(prompts, responses).tolist()
    return scores


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
