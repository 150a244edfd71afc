"""tokenizer.json and tokenizer_config.json of the demo model, from the GGUF's vocabulary."""

_SPECIAL_TOKEN = 3
BOS, EOS = "<|im_start|>", "<|im_end|>"


def _byte_level(add_prefix_space):
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True,
            "use_regex": True}


def files(reader):
    """(tokenizer.json, tokenizer_config.json) as objects."""
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    special = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True}
               for i, token in enumerate(tokens) if types[i] == _SPECIAL_TOKEN]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, _byte_level(False)]},
        "post_processor": None,
        "decoder": _byte_level(True),
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": reader.fields["tokenizer.ggml.merges"].contents()},
    }
    config = {
        "add_bos_token": False, "add_eos_token": False, "add_prefix_space": False,
        "added_tokens_decoder": {
            str(entry["id"]): {key: entry[key] for key in entry if key != "id"}
            for entry in special},
        "bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "unk_token": tokens[0],
        "additional_special_tokens": [BOS, EOS],
        "chat_template": reader.fields["tokenizer.chat_template"].contents(),
        "clean_up_tokenization_spaces": False, "model_max_length": 8192,
        "tokenizer_class": "GPT2Tokenizer",
    }
    return tokenizer, config
