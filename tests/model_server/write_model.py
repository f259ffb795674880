"""Writes a tiny language model with random weights as GGUF: a real model for a real model server, in half a megabyte.

It speaks nonsense, but everything around the words is genuine: tokens, sampling, grammars, streaming, stopping.
Runs in the model server's own environment (it needs ``gguf`` and ``numpy``), not in the tests':

    python write_model.py PATH [--endless]

The weights come from a fixed seed. One dimension of the residual stream is the same for every token but the line
feed, and what the table ``CONSTANT`` names reads that dimension alone, so its chance is the same at every step. So
an answer has about twenty tokens, is never empty (a line feed ends the prompt), and under a JSON grammar strings and
objects are soon closed. With ``--endless`` the model never stops by itself, for tests of token limits.
"""

import argparse

import gguf
import numpy as np

WIDTH, HEADS, LAYERS, FEED_FORWARD, CONTEXT = 64, 4, 2, 128, 2048
UNKNOWN, BEGIN, END = 0, 1, 2
SPREAD = 1.5  # standard deviation of a piece's logit
# Weight of the constant dimension in a piece's logit (which is about 3.6 times this).
CONSTANT = {"</s>": 0.85, '"': 0.9, "}": 0.9, "]": 0.9}
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '[' + message['role'] + '] ' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] or [] -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- for call in message['tool_calls'] or [] -%}
{{ call['function']['name'] + call['function']['arguments'] }}
{%- endfor -%}
{{ '\\n' }}
{%- endfor -%}
{{ '[assistant]\\n' }}"""
WORDS = "loom weft warp shuttle thread cloth the a of and to in is it reed heddle selvage bobbin".split()


def vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Pieces, scores and types of a SentencePiece vocabulary: specials, 256 bytes, printable ASCII, some words."""
    kinds = gguf.TokenType
    tokens = [
        ("<unk>", 0.0, kinds.UNKNOWN),
        ("<s>", 0.0, kinds.CONTROL),
        ("</s>", 0.0, kinds.CONTROL),
    ]
    tokens += [(f"<0x{byte:02X}>", 0.0, kinds.BYTE) for byte in range(256)]
    tokens += [(chr(code) if code != 32 else "\u2581", -20.0, kinds.NORMAL) for code in range(32, 127)]
    # The tokenizer merges pairs of known pieces, so every beginning of a word must be a piece too.
    pieces = sorted({"\u2581" + word[:end] for word in WORDS for end in range(1, len(word) + 1)}, key=len)
    tokens += [(piece, -10.0 + len(piece) / 10, kinds.NORMAL) for piece in pieces]
    return [token[0] for token in tokens], [token[1] for token in tokens], [int(token[2]) for token in tokens]


def write(path: str, endless: bool) -> None:
    """Write the model to ``path``."""
    pieces, scores, types = vocabulary()
    random = np.random.default_rng(20)

    def weights(rows: int, columns: int, scale: float) -> np.ndarray:
        return (random.standard_normal((rows, columns)) * scale).astype(np.float32)

    embedding = weights(len(pieces), WIDTH, 1.0)
    embedding[:, 0] = 4.0
    embedding[pieces.index("<0x0A>"), 0] = 0.0
    output = weights(len(pieces), WIDTH, SPREAD / WIDTH**0.5)
    output[:, 0] = 0.0
    # Bytes and specials are never better than the least likely words, so that the text is always valid.
    output[: 3 + 256] = 0.0
    output[: 3 + 256, 0] = -10.0
    for piece, weight in CONSTANT.items():
        if piece != "</s>" or not endless:
            output[pieces.index(piece)] = 0.0
            output[pieces.index(piece), 0] = weight

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("loomgate test model" + (" without an end" if endless else ""))
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(pieces))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, dtype=np.float32))
    writer.add_tensor("output.weight", output)
    for layer in range(LAYERS):
        name = f"blk.{layer}"
        writer.add_tensor(f"{name}.attn_norm.weight", np.ones(WIDTH, dtype=np.float32))
        writer.add_tensor(f"{name}.ffn_norm.weight", np.ones(WIDTH, dtype=np.float32))
        shapes = {
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (WIDTH, WIDTH),
            "attn_v": (WIDTH, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_gate": (FEED_FORWARD, WIDTH),
            "ffn_up": (FEED_FORWARD, WIDTH),
            "ffn_down": (WIDTH, FEED_FORWARD),
        }
        for part, (rows, columns) in shapes.items():
            tensor = weights(rows, columns, 0.5 / columns**0.5)
            if part in ("attn_output", "ffn_down"):
                tensor[0] = 0.0  # leaves the constant dimension alone
            writer.add_tensor(f"{name}.{part}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a tiny random language model as GGUF.")
    parser.add_argument("path")
    parser.add_argument("--endless", action="store_true", help="never stops by itself")
    options = parser.parse_args()
    write(options.path, options.endless)
