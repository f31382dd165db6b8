"""A script for TRL's PPOTrainer, of the shape that TRL's documentation teaches. It knows nothing of this package.

`test_drop_in.py` runs it as it stands, and with the one line changed that imports the trainer.
"""

import shutil

from accelerate import PartialState
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser
from trl import ModelConfig, ScriptArguments, get_peft_config
from trl.experimental.ppo import PPOConfig, PPOTrainer

EVALUATED = 4


def tokenize(rows, tokenizer):
    """Turn prompts into token ids; padding is the trainer's business."""

    def encode(batch):
        ids = tokenizer(batch["prompt"], padding=False)["input_ids"]
        return {"input_ids": ids, "lengths": [len(row) for row in ids]}

    encoded = rows.map(encode, batched=True, remove_columns=rows.column_names)
    return encoded.filter(lambda row: row["lengths"] <= 64)


def main():
    parser = HfArgumentParser((ScriptArguments, PPOConfig, ModelConfig))
    script_args, training_args, model_args = parser.parse_args_into_dataclasses()
    shutil.rmtree(training_args.output_dir, ignore_errors=True)

    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    reward_model = AutoModelForSequenceClassification.from_pretrained(training_args.reward_model_path, num_labels=1)
    value_model = AutoModelForSequenceClassification.from_pretrained(training_args.reward_model_path, num_labels=1)
    policy = AutoModelForCausalLM.from_pretrained(training_args.sft_model_path)
    peft_config = get_peft_config(model_args)
    ref_policy = None
    if peft_config is None:
        ref_policy = AutoModelForCausalLM.from_pretrained(training_args.sft_model_path)

    dataset = load_dataset(script_args.dataset_name, split=script_args.dataset_train_split)
    train_dataset = dataset.select(range(len(dataset) - EVALUATED))
    eval_dataset = dataset.select(range(len(dataset) - EVALUATED, len(dataset)))
    with PartialState().local_main_process_first():
        train_dataset = tokenize(train_dataset, tokenizer)
        eval_dataset = tokenize(eval_dataset, tokenizer)
    assert train_dataset[0]["input_ids"][-1] != tokenizer.eos_token_id

    trainer = PPOTrainer(
        args=training_args,
        processing_class=tokenizer,
        model=policy,
        ref_model=ref_policy,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        peft_config=peft_config,
    )
    trainer.train()

    trainer.save_model(training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    trainer.generate_completions()


if __name__ == "__main__":
    main()
