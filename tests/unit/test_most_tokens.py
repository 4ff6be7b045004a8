"""How many tokens a training file can have at most."""

from pathlib import Path

from finetune.datasets.most_tokens import most_tokens


def test_a_pair_counts_its_prompt_with_either_answer(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    alone = '{"messages": [{"role": "user", "content": "ä"}]}\n'
    pair = '{"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}\n'
    file.write_text(alone + pair)

    assert most_tokens(file) == len((alone + pair).encode()) + len('[{"role": "user"}]')
