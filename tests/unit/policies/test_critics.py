"""The forms of a critic: an adapter on the policy's trunk computes, learns and is saved as a critic of its own."""

import pytest
import torch
from ppo_helpers import exact, letters_tokenizer, make_ppo, prompts, random_episodes, runtime, tiny, weights, with_lora
from safetensors.torch import load_file
from transformers import LlamaForSequenceClassification

from rlhf.errors import ModelError
from rlhf.generation.rollout_policy import RolloutPolicy
from rlhf.models.shared_trunk import add_twin
from rlhf.packing.microbatch import microbatches
from rlhf.policies.actor_critic import AdapterCritic, SharedCritic
from rlhf.policies.checkpointing import recompute_activations
from rlhf.policies.critics import load_critic, make_critic
from rlhf.ppo import checkpoint
from rlhf.ppo.batch import collate

EPISODES = random_episodes(6, seed=2)
ROWS = [[3], [4, 5, 6], [5, 5], [6, 7, 3, 3], [7]]


def lora_policy(**options):
    return with_lora(exact(tiny()), **{"target_modules": "all-linear", **options})


def stir(model, *, seed=0):
    """Stand for training: move every trainable weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def trainer(folder, policy=None, *, stirred=True, recomputed=False, **options):
    defaults = {"critic": "adapter", "episodes": EPISODES, "temperature": 0.7, "minibatches": 1}
    made = make_ppo(policy if policy is not None else lora_policy(), **{**defaults, **options})
    if stirred:
        stir(made.actor_critic)
    if recomputed:
        recompute_activations(made.actor_critic)
    return made


def save(made, folder):
    checkpoint.save_models(made, folder, letters_tokenizer())


def microbatch():
    batch = collate(EPISODES, torch.float64, torch.device("cpu"))
    [part] = microbatches(batch, range(len(EPISODES)), 10**6)
    return part


def evaluate(actor_critic, **options):
    return actor_critic(microbatch(), 0.7, **options)


def merged(policy, adapter):
    """The plain model with one adapter's W + (alpha / r) B A, computed from the weights by name."""
    model = exact(tiny())
    own = dict(model.named_parameters())
    found = dict(policy.named_parameters())
    with torch.no_grad():
        for name, weight in found.items():
            if f".lora_A.{adapter}." in name:
                up = found[name.replace("lora_A", "lora_B")]
                target = name.removeprefix("base_model.model.").partition(".lora_A.")[0]
                own[f"{target}.weight"] += 8 / 2 * up @ weight  # alpha is 8 and r is 2
    return model.eval()


def split(actor_critic):
    """Trainable parameters by name: the critic's, and the policy's."""
    named = {name: p for name, p in actor_critic.named_parameters() if p.requires_grad}
    critic = {name: p for name, p in named.items() if ".critic." in name or name.startswith("value_model.")}
    return critic, {name: p for name, p in named.items() if name not in critic}


def test_at_first_all_roles_see_the_same_states(tmp_path):
    made = trainer(tmp_path, stirred=False).actor_critic
    part = microbatch()
    read = torch.cat([part.predictors, part.last])
    with made.adapters.using():
        reference = made._actor.states(part.tokens, read)
    with made.adapters.using("critic"):
        critic = made._actor.states(part.tokens, read)
    assert torch.equal(made._actor.states(part.tokens, read), reference)
    assert torch.equal(critic, reference)
    plain = part.tokens.pack(exact(tiny()).model(input_ids=part.tokens.pad(part.tokens.input_ids)).last_hidden_state)
    torch.testing.assert_close(reference, plain[read], atol=1e-12, rtol=0)
    assert evaluate(made).values.abs().max() == 0


def test_each_role_runs_with_its_own_adapter_alone(tmp_path):
    made = trainer(tmp_path).actor_critic
    part = microbatch()
    own, reference = evaluate(made), evaluate(made, reference=True)
    logprobs, values = {}, {}
    for role in ("default", "critic", "nobody"):
        model = merged(made.policy, role)
        hidden = model.model(input_ids=part.tokens.pad(part.tokens.input_ids)).last_hidden_state
        hidden = part.tokens.pack(hidden)[part.predictors]
        table = (model.lm_head(hidden) / 0.7).log_softmax(-1)
        logprobs[role] = table.gather(-1, part.targets[:, None]).squeeze(-1)
        values[role] = made.value_model.score(hidden).squeeze(-1)
    torch.testing.assert_close(own.logprobs, logprobs["default"], atol=1e-10, rtol=0)
    torch.testing.assert_close(own.values, values["critic"], atol=1e-10, rtol=0)
    torch.testing.assert_close(reference.logprobs, logprobs["nobody"], atol=1e-10, rtol=0)
    assert min((values["critic"] - values[role]).abs().max() for role in ("default", "nobody")) > 0.01
    assert (logprobs["default"] - logprobs["critic"]).abs().max() > 0.01


@pytest.mark.parametrize("recomputed", [False, True])
def test_each_loss_reaches_its_own_adapter_alone(tmp_path, recomputed):
    made = trainer(tmp_path, recomputed=recomputed).actor_critic.train()
    for loss, reached in (("values", 0), ("logprobs", 1)):
        outputs = evaluate(made)
        evaluate(made, reference=True)  # must not take gradients away from anybody
        (getattr(outputs, loss) ** 2).sum().backward()
        parts = split(made)
        assert all(p.grad is not None and p.grad.abs().max() > 1e-9 for p in parts[reached].values())
        assert all(p.grad is None for p in parts[1 - reached].values())
        for parameter in made.parameters():
            parameter.grad = None
    assert len(parts[0]) == len(parts[1]) + 2  # the head has a weight and a bias
    assert not any(
        p.requires_grad for name, p in made.named_parameters() if "lora_" not in name and "score" not in name
    )


def test_recomputed_activations_give_the_same_gradients(tmp_path):
    gradients = []
    for recomputed in (False, True):
        made = trainer(tmp_path, recomputed=recomputed).actor_critic.train()
        outputs = evaluate(made)
        (outputs.values.pow(2).sum() + outputs.logprobs.sum()).backward()
        gradients.append({name: p.grad for name, p in made.named_parameters() if p.grad is not None})
    assert len(gradients[0]) > 20
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-10, rtol=0)


def test_activations_cannot_be_recomputed_by_reentering(tmp_path):
    with pytest.raises(ModelError, match="use_reentrant true does not go with critic 'adapter'"):
        recompute_activations(trainer(tmp_path).actor_critic, {"use_reentrant": True})


def test_the_optimizer_has_every_parameter_once_at_its_rate(tmp_path):
    made = trainer(tmp_path, learning_rate=1e-3, critic_learning_rate=0.5)
    critic, policy = split(made.actor_critic)
    rates = [(id(p), group["lr"]) for group in made.optimizer.param_groups for p in group["params"]]
    assert len(rates) == len(set(rates)) == len(critic) + len(policy)
    assert {i for i, rate in rates if rate == 0.5} == {id(p) for p in critic.values()}
    assert {i for i, rate in rates if rate == 1e-3} == {id(p) for p in policy.values()}


def test_rollouts_merge_the_policys_adapter_alone(tmp_path):
    made = trainer(tmp_path)
    copy = RolloutPolicy(made.actor_critic.policy, runtime()).refresh()
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        logits = {role: merged(made.actor_critic.policy, role)(ids).logits for role in ("default", "critic")}
        torch.testing.assert_close(copy(ids).logits, logits["default"], atol=1e-5, rtol=0)  # summed in float32
    assert (logits["default"] - logits["critic"]).abs().max() > 0.01


def count_a(prompts, completions, completion_ids, **_):
    return [float(ids.count(3)) for ids in completion_ids]


def learning(folder, *, iterations=12, saving=False, **options):
    seen = []

    def look(iteration):
        seen.append(iteration)
        if saving:
            checkpoint.save(made, folder / f"checkpoint-{iteration.number + 1}")

    made = make_ppo(with_lora(tiny(), target_modules="all-linear"), critic="adapter", reward=count_a,
        dataset=prompts(ROWS), total_episodes=16 * iterations, episodes_per_iteration=16,
        max_response_tokens=5, min_response_tokens=5, minibatches=2, epochs=2, learning_rate=3e-2,
        kl_coefficient=0.01, scheduler="constant", on_iteration=look, **options,
    )  # fmt: skip
    return made, seen


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
def test_training_raises_the_score_and_both_adapters_move(tmp_path, bf16):
    made, seen = learning(tmp_path, bf16=bf16)
    before = weights(made.actor_critic)
    made.train()
    scores = [iteration.metrics["ppo/score"] for iteration in seen]
    assert sum(scores[-3:]) / 3 > sum(scores[:2]) / 2 + 1
    moved = {name for name, weight in weights(made.actor_critic).items() if not torch.equal(weight, before[name])}
    assert moved == {name for name, p in made.actor_critic.named_parameters() if p.requires_grad}
    assert any(".critic." in name for name in moved)
    assert any(".default." in name for name in moved)
    assert seen[0].metrics["ppo/kl"] == 0.0  # the reference is the policy of the start, to the bit


def test_a_run_is_resumed_to_the_bit(tmp_path):
    saving = {"saving": True, "iterations": 2}
    whole, seen = learning(tmp_path / "whole", **saving)
    whole.train()
    resumed, later = learning(tmp_path / "resumed", **saving)
    checkpoint.load(resumed, tmp_path / "whole" / "checkpoint-1")
    resumed.train()
    assert later[-1].metrics["ppo/loss/value"] == seen[-1].metrics["ppo/loss/value"]
    for name, weight in weights(whole.actor_critic).items():
        assert torch.equal(weights(resumed.actor_critic)[name], weight), name


def separate():
    model = LlamaForSequenceClassification(tiny(seed=1, num_labels=1).config)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(3))
    return model


@pytest.mark.parametrize("form", ["separate", "shared", "adapter"])
def test_a_saved_critic_has_the_values_that_it_had(tmp_path, form):
    given = {"critic_model": separate()} if form == "separate" else {}
    made = trainer(tmp_path, with_lora(tiny(), target_modules="all-linear"), critic=form, **given)
    before = evaluate(made.actor_critic).values
    save(made, tmp_path / "saved")
    policy = with_lora(tiny(), target_modules="all-linear")
    policy.load_state_dict({n: w for n, w in made.actor_critic.policy.state_dict().items() if ".critic." not in n})
    critic = load_critic(tmp_path / "saved" / "critic", policy)
    again = trainer(tmp_path, policy, critic=form, critic_model=critic, stirred=False)
    assert again.actor_critic.value_model is critic
    torch.testing.assert_close(evaluate(again.actor_critic).values, before, atol=1e-6, rtol=0)
    assert before.abs().max() > 0.1
    assert split(again.actor_critic)[0].keys() == split(made.actor_critic)[0].keys()  # it goes on learning


def test_the_saved_policy_has_its_own_adapter_alone(tmp_path):
    policy = lora_policy()
    add_twin(policy, "reward")  # a role that is none of the trainer's
    made = trainer(tmp_path, policy)
    save(made, tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    own = {name: p for name, p in made.actor_critic.policy.named_parameters() if ".default." in name}
    assert saved.keys() == {name.replace(".default", "") for name in own}
    for name, weight in own.items():
        assert torch.equal(saved[name.replace(".default", "")], weight)
    assert {entry.name for entry in (tmp_path / "saved").iterdir() if entry.is_dir()} == {"critic"}
    critic = load_file(tmp_path / "saved" / "critic" / "adapter_model.safetensors")
    name = next(iter(critic))
    assert critic.keys() == saved.keys()
    assert not torch.equal(critic[name], saved[name])


def test_without_lora_there_is_no_adapter_critic(tmp_path):
    with pytest.raises(ModelError, match="critic is 'adapter', but the policy has no adapter itself: give peft_config"):
        trainer(tmp_path, tiny())


@pytest.mark.parametrize("form", ["separate", "shared"])
def test_another_form_than_the_configured_one_is_refused(tmp_path, form):
    made = trainer(tmp_path)
    save(made, tmp_path / "saved")
    policy = lora_policy()
    critic = load_critic(tmp_path / "saved" / "critic", policy)
    assert isinstance(critic, AdapterCritic)
    with pytest.raises(ModelError, match=f"critic is '{form}', but value_model is of the form 'adapter'"):
        make_critic(form, policy, critic)


def test_critics_that_do_not_fit_are_refused(tmp_path):
    save(trainer(tmp_path), tmp_path / "adapter")
    folder = tmp_path / "adapter" / "critic"
    for policy in (None, tiny()):
        with pytest.raises(ModelError, match="give load_critic the policy with its LoRA adapter"):
            load_critic(folder, policy)
    with pytest.raises(ModelError, match="trained on another trunk than that of the policy"):
        load_critic(folder, with_lora(exact(tiny(seed=1)), target_modules="all-linear"))
    policy = lora_policy()
    load_critic(folder, policy)
    with pytest.raises(ModelError, match="has an adapter named 'critic' already"):
        load_critic(folder, policy)
    save(trainer(tmp_path, critic="shared"), tmp_path / "shared")
    with pytest.raises(ModelError, match=r"give load_critic the policy$"):
        load_critic(tmp_path / "shared" / "critic")
    wide = tiny(hidden_size=32)
    with pytest.raises(ModelError, match="a critic of width 16, for a policy of width 32"):
        load_critic(tmp_path / "shared" / "critic", wide)
    assert isinstance(load_critic(tmp_path / "shared" / "critic", tiny()), SharedCritic)


def test_folders_without_a_critic_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"has no critic: neither config\.json nor value_head\.pt"):
        load_critic(tmp_path / "nowhere")
    tiny().save_pretrained(tmp_path / "policy")
    letters_tokenizer().save_pretrained(tmp_path / "policy")
    with pytest.raises(ModelError, match="is no critic: a sequence-classification model with one label is needed"):
        load_critic(tmp_path / "policy")


def test_an_adapter_that_trains_biases_leaves_no_room_for_another(tmp_path):
    with pytest.raises(ModelError, match="is LORA with bias 'all'; only LoRA without biases"):
        make_critic("adapter", lora_policy(bias="all"), None)
