"""End of the reward stage: mean and variance of the new model's scores on responses of the SFT policy.

PPO starts from that policy, so its first scores have mean 0 and variance 1. The responses are sampled from prompts of
the preference data, at temperature 1, each process its share.
"""

from collections.abc import Sequence

import numpy as np

from reward_models.chat import Text, encode_prompt
from reward_models.normalise import Normalisation
from rlhf.config.ppo import RolloutConfig
from rlhf.config.schema import Config
from rlhf.data.split import prompt_key
from rlhf.episodes.text import response_text
from rlhf.errors import StageError
from rlhf.files.run_folder import RunFolder
from rlhf.generation.generator import Request
from rlhf.generation.noise import response_key
from rlhf.generation.torch_generator import TorchGenerator
from rlhf.launch.deepspeed import barrier, gather
from rlhf.launch.runtime import Runtime
from rlhf.models.load import load_policy, max_positions
from rlhf.scoring.scorer import load_reward_model
from rlhf.stages.base_model import policy_folder, policy_tokenizer
from rlhf.tracking.progress import StageProgress

_ITERATION = -2  # names the noise; training counts from 0, evaluation uses -1


def normalise(
    config: Config, folder: RunFolder, prompts: Sequence[Text], runtime: Runtime, progress: StageProgress
) -> Normalisation:
    """Sample responses, score them with the model in `folder.reward`, and write its `normalisation.json`.

    Args:
        config: `reward.normalisation_samples` responses are sampled.
        folder: Holds the SFT policy and the new reward model.
        prompts: To choose from; of equal ones one is taken.
        runtime: Where models compute.
        progress: What the terminal shows of the stage.

    Raises:
        StageError: No prompt leaves the policy room for a response.
        RewardError: The scores do not differ.
    """
    asked, said = sample_responses(config, folder, prompts, runtime, progress)
    judge = load_reward_model(config, folder, runtime)  # not normalised yet
    raw = np.array(gather(judge.raw_score(asked, said).tolist()))
    normalisation = Normalisation.fit(raw[np.isfinite(raw)])  # whatever was too long for the model has no score
    if runtime.is_main_process:
        normalisation.save(folder.reward)
    barrier()
    return normalisation


def sample_responses(
    config: Config, folder: RunFolder, prompts: Sequence[Text], runtime: Runtime, progress: StageProgress
) -> tuple[list[Text], list[str]]:
    """Let the SFT policy respond; return this process's share of the prompts, and the responses to them."""
    assert config.reward is not None
    section, tokenizer = config.reward, policy_tokenizer(config)
    policy = load_policy(config.model, tokenizer, folder=policy_folder(config, folder), seed=config.seed)
    positions = max_positions(policy.config) or 2**31
    distinct = list({prompt_key(prompt): prompt for prompt in prompts}.values())
    encoded = [(prompt, encode_prompt(tokenizer, prompt)) for prompt in distinct]
    fitting = [(prompt, ids) for prompt, ids in encoded if len(ids) < positions]
    if not fitting:
        raise StageError(f"no prompt of reward.data is shorter than the {positions} tokens that the policy reads")
    # Prompt after prompt, then second samples of each, until there are enough.
    numbers = range(section.normalisation_samples)[runtime.rank :: runtime.world_size]
    requests = [
        Request(
            prompt_ids=ids,
            key=response_key(config.seed, _ITERATION, ids, sample_index=number // len(fitting)),
            max_tokens=min(section.normalisation_max_response_tokens, positions - len(ids)),
        )
        for number in numbers
        for _, ids in [fitting[number % len(fitting)]]
    ]
    settings = RolloutConfig(max_response_tokens=section.normalisation_max_response_tokens)
    generator = TorchGenerator(
        policy.to(runtime.device).eval(),
        settings,
        (int(tokenizer.eos_token_id),),
        tokenizer.decode,
        runtime.for_model(config.model),
        on_tokens=progress.count_tokens,
    )
    generator.update()
    sampled = []
    progress.start(len(requests), unit="responses to normalise by")
    progress.note("sampling")
    for first in range(0, len(requests), settings.batch_size):
        sampled += generator.generate(requests[first : first + settings.batch_size])
        progress.update(len(sampled))
    asked = [fitting[number % len(fitting)][0] for number in numbers]
    return asked, [response_text(tokenizer, result) for result in sampled]
