"""Faults in what a run is made of and goes on from: options, models in their roles, optimizer, checkpoints."""

from ..fault import Fault

FAULTS = (
    Fault(
        "missing-eos-penalty-replaces",
        "translate",
        '"missing_stop.action": "subtract"',
        '"missing_stop.action": "replace"',
        "TRL subtracts the penalty",
        ("test_oracle_16_a_stop_token_of_ones_own",),
    ),
    Fault(
        "kl-target-and-horizon-swapped",
        "translate",
        '    "kl.horizon": "kl_horizon",\n    "kl.target": "kl_target",\n',
        '    "kl.horizon": "kl_target",\n    "kl.target": "kl_horizon",\n',
        "the target is ten thousand nats",
        ("test_kl_controllers_by_name",),
    ),
    Fault(
        "k3-accepted",
        "options",
        'args.kl_estimator != "k1"',
        'args.kl_estimator not in ("k1", "k3")',
        "an option that TRL has is taken and not obeyed",
        ("options",),
    ),
    Fault(
        "dropout-comes-back",
        "roles.make_actor_critic",
        "            disable_dropout(module)",
        "            module.eval()",
        "the update's train() switches dropout on again",
        ("test_oracle_08_and_09_the_first_minibatch_has_ratio_1_to_the_bit",),
    ),
    Fault(
        "schedule-never-ends",
        "optimizer.make_schedule",
        "num_training_steps=settings.iterations,",
        "num_training_steps=settings.iterations + 1,",
        "the learning rate does not fall to 0",
        ("test_oracle_25_the_learning_rate_falls_to_exactly_0",),
    ),
    Fault(
        "reference-shares-weights",
        "roles.make_reference",
        "reference = copy.deepcopy(roles.policy)",
        "reference = copy.copy(roles.policy)",
        "freezing the reference freezes the policy, which it follows",
        ("test_estimators_without_a_critic_train_none",),
    ),
    Fault(
        "biases-decay",
        "optimizer.parameter_groups",
        "weight_decay if parameter.ndim > 1 else 0.0",
        "weight_decay",
        "norms and biases are pulled to 0",
        ("test_the_critics_own_learning_rate_and_weight_decay",),
    ),
    Fault(
        "critic-rate-for-all",
        "optimizer.parameter_groups",
        "if critic and critic_learning_rate",
        "if critic_learning_rate",
        "the policy learns at the critic's rate",
        ("test_the_critics_own_learning_rate_and_weight_decay",),
    ),
    Fault(
        "resume-forgets-the-coefficient",
        "checkpoint.load",
        '    ppo.kl_controller.coefficient = progress["kl_coefficient"]\n',
        "",
        "an adapted KL coefficient starts anew",
        ("test_oracle_27_resumed_equals_uninterrupted_to_the_bit",),
    ),
    Fault(
        "resume-forgets-the-schedule",
        "checkpoint.load",
        '    ppo.schedule.load_state_dict(progress["schedule"])\n',
        "",
        "the learning rate starts anew",
        ("test_oracle_27_resumed_equals_uninterrupted_to_the_bit",),
    ),
    Fault(
        "resume-forgets-the-optimizer",
        "checkpoint.load",
        "    ppo.accelerator.load_state(os.path.join(folder, _STATE))\n",
        "    import torch\n"
        '    ppo.actor_critic.load_state_dict(torch.load(os.path.join(folder, _STATE, "pytorch_model.bin")))\n',
        "Adam's moments start anew",
        ("test_oracle_27_resumed_equals_uninterrupted_to_the_bit",),
    ),
    Fault(
        "resume-forgets-the-generators",
        "checkpoint.load",
        "    ppo.accelerator.load_state(os.path.join(folder, _STATE))\n",
        "    import torch\n"
        "    generators = torch.get_rng_state()\n"
        "    ppo.accelerator.load_state(os.path.join(folder, _STATE))\n"
        "    torch.set_rng_state(generators)\n",
        "random numbers go on from the start of the program",
        ("test_oracle_27_random_numbers_go_on_where_they_stopped",),
    ),
    Fault(
        "resume-forgets-the-iteration",
        "checkpoint.load",
        'Progress(progress["iteration"], progress["episodes"])',
        'Progress(0, progress["episodes"])',
        "the first prompts are played again",
        ("test_oracle_27_resumed_equals_uninterrupted_to_the_bit",),
    ),
    Fault(
        "critic-not-saved",
        "checkpoint.save_models",
        '    save_critic(ppo.actor_critic, state, tokenizer, Path(folder, "critic"))\n',
        "",
        "the critic is lost with the run",
        ("test_saved_models_load_and_answer_alike",),
    ),
)
