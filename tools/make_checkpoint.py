#!/usr/bin/env python3
"""make_checkpoint.py - a random Qwen2.5-Omni thinker of any size, in the Hugging Face layout.

    make_checkpoint.py --out DIR [--preset like7b|like3b|odd] [--hidden 64 --layers 7 ...]
                       [--layout full|thinker] [--shards N] [--dtype f32|bf16|f16] [--tie] [--seed N]

Writes config.json, model.safetensors (or shards and their index), tokenizer.json, tokenizer_config.json,
a chat template, preprocessor (or processor) configs and generation_config.json. The weights mean
nothing. They are scaled so that activations keep their size, attention has peaks and a few embedding
rows are tiny (so that the eps of the first norm matters).

A preset names every size; options given beside it win. What is not a size:
    layout     full: names with `thinker.`, a config with `thinker_config`, talker and vocoder tensors that
               a loader must skip; thinker: names without prefix, the thinker's config alone
    tie        thinker_config.tie_word_embeddings, and no lm_head tensor
    template   where the chat template is: chat_template.json or chat_template.jinja
    keys       old: rope_theta and rope_scaling, *_token_index; new: rope_parameters, layer_types, *_token_id
    processor  old: preprocessor_config.json; new: one processor_config.json, pixel limits as `size`
    video      MIN,MAX pixels of a video frame that the checkpoint asks for (none: the processor's default)
"""
import argparse
import json
import os

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from goldens import corpus

ADDED = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_bos|>", "<|vision_eos|>", "<|vision_pad|>",
    "<|IMAGE|>", "<|VIDEO|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"
]
N_SPECIAL = 14  # the first 14 are dropped when text is shown
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
NAMES = dict(image_token="<|IMAGE|>", audio_token="<|AUDIO|>", video_token="<|VIDEO|>",
             vision_bos_token="<|vision_bos|>", vision_eos_token="<|vision_eos|>",
             audio_bos_token="<|audio_bos|>", audio_eos_token="<|audio_eos|>")

PRESETS = {
    # 14 query heads on 2 KV heads as 28 on 4; one file, full layout, nothing tied
    "like7b": dict(hidden=56, layers=7, heads=14, kv_heads=2, head_dim=8, mlp=96, mrope="1,1,2", merges=256,
                   pad_rows=23, audio_width=32, audio_layers=2, audio_heads=2, audio_ffn=64, n_window=100,
                   vision_width=32, vision_depth=3, vision_heads=2, vision_mlp=44, window=112,
                   full_blocks="1", layout="full", shards=1, dtype="f32", tie=False, template="json",
                   keys="old", processor="old", video="", selector=0, seed=7),
    # 16 on 2, tied embeddings, another vocabulary, shards
    "like3b": dict(hidden=64, layers=6, heads=16, kv_heads=2, head_dim=8, mlp=172, mrope="1,1,2", merges=420,
                   pad_rows=9, audio_width=40, audio_layers=3, audio_heads=5, audio_ffn=88, n_window=100,
                   vision_width=48, vision_depth=4, vision_heads=3, vision_mlp=50, window=112,
                   full_blocks="1,3", layout="full", shards=3, dtype="bf16", tie=True, template="json",
                   keys="old", processor="new", video="", selector=0, seed=3),
    # one KV head, head width 24, an MLP width no vector likes, small windows and chunks, limits of its own, the selector
    # of OmniSIFT
    "odd": dict(hidden=60, layers=5, heads=3, kv_heads=1, head_dim=24, mlp=83, mrope="2,4,6", merges=128,
                pad_rows=0, audio_width=36, audio_layers=2, audio_heads=3, audio_ffn=50, n_window=26,
                vision_width=40, vision_depth=2, vision_heads=2, vision_mlp=37, window=56, full_blocks="1",
                layout="thinker", shards=1, dtype="f32", tie=False, template="jinja", keys="new",
                processor="old", video="3136,9408", selector=16, seed=5),
}

# What the template must do: every message as im_start, role, newline, body, im_end, newline; a system
# message of one sentence first if the conversation brings none; media as their three tokens, numbered
# on request; the assistant's opening at the end on request.
TEMPLATE = """\
{%- set n = namespace(picture=0, film=0, sound=0) -%}
{%- macro has(part, word) -%}
  {%- set long = word ~ '_url' -%}
  {%- if part['type'] in [word, long] or word in part or long in part -%}1{%- endif -%}
{%- endmacro -%}
{%- macro label(text, number) -%}{{ text }} {{ number }}: {% endmacro -%}
{%- if messages and messages[0]['role'] != 'system' -%}
  {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {{- '<|im_start|>' ~ message['role'] ~ '\\n' -}}
  {%- set body = message['content'] -%}
  {%- if body is string -%}
    {{- body -}}
  {%- else -%}
    {%- for part in body -%}
      {%- if has(part, 'image') -%}
        {%- set n.picture = n.picture + 1 -%}
        {%- if add_vision_id is defined and add_vision_id -%}{{- label('Picture', n.picture) -}}{%- endif -%}
        {{- '<|vision_bos|><|IMAGE|><|vision_eos|>' -}}
      {%- elif has(part, 'audio') or part['type'] == 'input_audio' -%}
        {%- set n.sound = n.sound + 1 -%}
        {%- if add_audio_id is defined and add_audio_id -%}{{- label('Audio', n.sound) -}}{%- endif -%}
        {{- '<|audio_bos|><|AUDIO|><|audio_eos|>' -}}
      {%- elif has(part, 'video') -%}
        {%- set n.film = n.film + 1 -%}
        {%- if add_vision_id is defined and add_vision_id -%}{{- label('Video', n.film) -}}{%- endif -%}
        {{- '<|vision_bos|><|VIDEO|><|vision_eos|>' -}}
      {%- else -%}
        {{- part['text'] -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
  {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def train_tokenizer(n_merges, seed=1, n_lines=400, more=()):
    """A byte-level BPE as Qwen's: 256 bytes, n_merges merges, the 22 added tokens. more: lines to add."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        corpus.lines(n_lines, seed) + list(more),
        trainers.BpeTrainer(vocab_size=256 + n_merges, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                            show_progress=False))
    n = tok.get_vocab_size()
    if n != 256 + n_merges:
        raise SystemExit(f"the corpus is too small for {n_merges} merges: it gave {n - 256}; raise n_lines")
    tok.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ADDED[:N_SPECIAL]])
    tok.add_tokens([AddedToken(t, normalized=False, special=False) for t in ADDED[N_SPECIAL:]])
    return tok


def shapes(o):
    """Tensor name (without prefix) -> shape, by the tables of the model's documentation."""
    q, kv, s = o.heads * o.head_dim, o.kv_heads * o.head_dim, {}
    s["model.embed_tokens.weight"] = [o.vocab, o.hidden]
    for i in range(o.layers):
        p = f"model.layers.{i}."
        s[p + "input_layernorm.weight"] = s[p + "post_attention_layernorm.weight"] = [o.hidden]
        for x, w in (("q", q), ("k", kv), ("v", kv)):
            s[p + f"self_attn.{x}_proj.weight"], s[p + f"self_attn.{x}_proj.bias"] = [w, o.hidden], [w]
        s[p + "self_attn.o_proj.weight"] = [o.hidden, q]
        s[p + "mlp.gate_proj.weight"] = s[p + "mlp.up_proj.weight"] = [o.mlp, o.hidden]
        s[p + "mlp.down_proj.weight"] = [o.hidden, o.mlp]
    s["model.norm.weight"] = [o.hidden]
    if not o.tie:
        s["lm_head.weight"] = [o.vocab, o.hidden]

    w = o.vision_width
    s["visual.patch_embed.proj.weight"] = [w, 3, 2, 14, 14]
    for i in range(o.vision_depth):
        p = f"visual.blocks.{i}."
        s[p + "norm1.weight"] = s[p + "norm2.weight"] = [w]
        for x in ("q", "k", "v", "proj"):
            s[p + f"attn.{x}.weight"], s[p + f"attn.{x}.bias"] = [w, w], [w]
        for x in ("gate_proj", "up_proj"):
            s[p + f"mlp.{x}.weight"], s[p + f"mlp.{x}.bias"] = [o.vision_mlp, w], [o.vision_mlp]
        s[p + "mlp.down_proj.weight"], s[p + "mlp.down_proj.bias"] = [w, o.vision_mlp], [w]
    s["visual.merger.ln_q.weight"] = [w]
    s["visual.merger.mlp.0.weight"], s["visual.merger.mlp.0.bias"] = [4 * w, 4 * w], [4 * w]
    s["visual.merger.mlp.2.weight"], s["visual.merger.mlp.2.bias"] = [o.hidden, 4 * w], [o.hidden]

    a = o.audio_width
    s["audio_tower.conv1.weight"], s["audio_tower.conv1.bias"] = [a, 128, 3], [a]
    s["audio_tower.conv2.weight"], s["audio_tower.conv2.bias"] = [a, a, 3], [a]
    for i in range(o.audio_layers):
        p = f"audio_tower.layers.{i}."
        for x in ("self_attn_layer_norm", "final_layer_norm"):
            s[p + x + ".weight"] = s[p + x + ".bias"] = [a]
        for x in ("q_proj", "k_proj", "v_proj", "out_proj"):
            s[p + f"self_attn.{x}.weight"] = [a, a]
            if x != "k_proj":
                s[p + f"self_attn.{x}.bias"] = [a]
        s[p + "fc1.weight"], s[p + "fc1.bias"] = [o.audio_ffn, a], [o.audio_ffn]
        s[p + "fc2.weight"], s[p + "fc2.bias"] = [a, o.audio_ffn], [a]
    s["audio_tower.ln_post.weight"] = s["audio_tower.ln_post.bias"] = [a]
    s["audio_tower.proj.weight"], s["audio_tower.proj.bias"] = [o.hidden, a], [o.hidden]
    s["audio_tower.audio_bos_eos_token.weight"] = [2, o.hidden]

    w, p = o.selector, "compressor."
    for x in ("v_proj", "a_proj") if w else ():
        s[p + x + ".weight"], s[p + x + ".bias"] = [w, o.hidden], [w]
    for x in ("v_norm", "a_norm", "post_attn_norm") if w else ():
        s[p + x + ".weight"] = s[p + x + ".bias"] = [w]
    if w:
        s[p + "cross_attn.in_proj_weight"], s[p + "cross_attn.in_proj_bias"] = [3 * w, w], [3 * w]
        s[p + "cross_attn.out_proj.weight"], s[p + "cross_attn.out_proj.bias"] = [w, w], [w]
        s[p + "score_head.0.weight"], s[p + "score_head.0.bias"] = [w // 2, w], [w // 2]
        s[p + "score_head.2.weight"], s[p + "score_head.2.bias"] = [1, w // 2], [1]
    return s


def weights(o):
    """Random f32 tensors of those shapes; name by name, so that a size changes only its own tensors."""
    out = {}
    for i, (name, shape) in enumerate(shapes(o).items()):
        rng = np.random.default_rng([o.seed, i])
        x = rng.standard_normal(shape)
        if "norm" in name.split(".")[-2] or name.endswith(("ln_q.weight", "ln_post.weight", "ln_post.bias")):
            x = 0.1 * x if name.endswith("bias") else 1 + 0.15 * x
        elif name.endswith("bias"):
            x *= 0.5 if "self_attn.k_proj" in name and name.startswith("model.") else 0.2
        elif name == "model.embed_tokens.weight":
            x[rng.random(shape[0]) < 0.1] *= 1e-3
        elif name == "audio_tower.audio_bos_eos_token.weight":
            pass
        else:
            gain = 2.6 if name == "lm_head.weight" else 1.0
            if name.endswith(("q_proj.weight", "k_proj.weight", "attn.q.weight", "attn.k.weight")):
                gain = 1.3
            elif name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "attn.proj.weight")):
                gain = 0.8
            x *= gain / np.sqrt(np.prod(shape[1:]))
        out[name] = torch.from_numpy(x.astype(np.float32))
    return out


def config(o, ids, user_id):
    """config.json. `ids` maps the added tokens to their ids."""
    text = dict(model_type="qwen2_5_omni_text", attention_dropout=0.0, hidden_act="silu",
                hidden_size=o.hidden, intermediate_size=o.mlp, num_hidden_layers=o.layers,
                num_attention_heads=o.heads, num_key_value_heads=o.kv_heads, max_position_embeddings=32768,
                max_window_layers=o.layers, rms_norm_eps=1e-6, sliding_window=32768, use_sliding_window=False,
                use_cache=True, vocab_size=o.vocab)
    if o.head_dim * o.heads != o.hidden:
        text["head_dim"] = o.head_dim
    sections = [int(x) for x in o.mrope.split(",")]
    if o.keys == "new":
        text["rope_parameters"] = dict(mrope_section=sections, rope_type="default", rope_theta=1e6)
        text["layer_types"] = ["full_attention"] * o.layers
    else:
        text["rope_theta"] = 1e6
        text["rope_scaling"] = dict(mrope_section=sections, rope_type="default", type="default")
    audio = dict(model_type="qwen2_5_omni_audio_encoder", num_mel_bins=128, d_model=o.audio_width,
                 encoder_layers=o.audio_layers, encoder_attention_heads=o.audio_heads,
                 encoder_ffn_dim=o.audio_ffn, activation_function="gelu", dropout=0.0, attention_dropout=0.0,
                 activation_dropout=0.0, max_source_positions=1500, n_window=o.n_window,
                 scale_embedding=False, output_dim=o.hidden)
    vision = dict(model_type="qwen2_5_omni_vision_encoder", depth=o.vision_depth, hidden_size=o.vision_width,
                  embed_dim=o.vision_width, num_heads=o.vision_heads, intermediate_size=o.vision_mlp,
                  hidden_act="silu", in_channels=3, in_chans=3, patch_size=14, spatial_patch_size=14,
                  temporal_patch_size=2, spatial_merge_size=2, window_size=o.window, tokens_per_second=25,
                  fullatt_block_indexes=[int(x) for x in o.full_blocks.split(",")], out_hidden_size=o.hidden)
    word = "id" if o.keys == "new" else "index"
    thinker = dict(model_type="qwen2_5_omni_thinker", audio_config=audio, text_config=text,
                   vision_config=vision)
    thinker.update({
        f"audio_token_{word}": ids["<|AUDIO|>"], f"image_token_{word}": ids["<|IMAGE|>"],
        f"video_token_{word}": ids["<|VIDEO|>"]
    })
    thinker.update(audio_start_token_id=ids["<|audio_bos|>"], audio_end_token_id=ids["<|audio_eos|>"],
                   vision_start_token_id=ids["<|vision_bos|>"], vision_end_token_id=ids["<|vision_eos|>"],
                   vision_token_id=ids["<|vision_pad|>"], pad_token_id=ids["<|endoftext|>"],
                   bos_token_id=ids["<|im_start|>"], eos_token_id=ids["<|im_end|>"], user_token_id=user_id,
                   position_id_per_seconds=25, seconds_per_chunk=2, ignore_index=-100, initializer_range=0.02,
                   tie_word_embeddings=o.tie)
    kind = dict(f32="float32", bf16="bfloat16", f16="float16")[o.dtype]
    if o.layout == "thinker":
        return dict(architectures=["Qwen2_5OmniThinkerForConditionalGeneration"], torch_dtype=kind, **thinker)
    return dict(architectures=["Qwen2_5OmniForConditionalGeneration"], model_type="qwen2_5_omni",
                enable_audio_output=True, enable_talker=True, torch_dtype=kind, thinker_config=thinker,
                talker_config=dict(model_type="qwen2_5_omni_talker"),
                token2wav_config=dict(model_type="qwen2_5_omni_token2wav"))


def put_tensors(o, file, tensors):
    save_file(tensors, os.path.join(o.out, file), metadata={"format": "pt"})
    os.chmod(os.path.join(o.out, file), 0o644)


def save(o, tensors):
    """model.safetensors, or --shards files with their index; tensors of one layer may lie in two shards."""
    if o.shards == 1:
        put_tensors(o, "model.safetensors", tensors)
        return
    total = sum(x.numel() * x.element_size() for x in tensors.values())
    parts, at = [{} for _ in range(o.shards)], 0
    for name, x in tensors.items():
        parts[min(o.shards - 1, at * o.shards // total)][name] = x
        at += x.numel() * x.element_size()
    where = {}
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05d}-of-{o.shards:05d}.safetensors"
        put_tensors(o, file, part)
        where.update({name: file for name in part})
    put(o, "model.safetensors.index.json", dict(metadata=dict(total_size=total), weight_map=where))


def put(o, name, value):
    with open(os.path.join(o.out, name), "w", encoding="utf-8") as f:
        f.write(value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def processors(o):
    sound = dict(feature_extractor_type="WhisperFeatureExtractor", feature_size=128, sampling_rate=16000,
                 n_fft=400, hop_length=160, chunk_length=300, n_samples=4800000, nb_max_frames=30000,
                 padding_side="right", padding_value=0.0, dither=0.0, return_attention_mask=True)
    pixels = dict(patch_size=14, temporal_patch_size=2, merge_size=2,
                  image_mean=[0.48145466, 0.4578275,
                              0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711])
    image = dict(image_processor_type="Qwen2VLImageProcessor", **pixels)
    low, high = (int(x) for x in (o.video or "100352,602112").split(","))
    if o.processor == "new":
        put(
            o, "processor_config.json",
            dict(
                processor_class="Qwen2_5OmniProcessor", feature_extractor=sound,
                image_processor=dict(image, size=dict(shortest_edge=3136, longest_edge=12845056)),
                video_processor=dict(video_processor_type="Qwen2VLVideoProcessor", **pixels,
                                     do_sample_frames=False, size=dict(shortest_edge=low,
                                                                       longest_edge=high))))
        return
    put(o, "preprocessor_config.json",
        dict(sound, processor_class="Qwen2_5OmniProcessor", **image, min_pixels=3136, max_pixels=12845056))
    if o.video:
        put(
            o, "video_preprocessor_config.json",
            dict(video_processor_type="Qwen2VLVideoProcessor", **pixels, min_pixels=low, max_pixels=high,
                 size=dict(shortest_edge=low, longest_edge=high), do_sample_frames=False))


def make(o):
    """Write the checkpoint that the options o describe to o.out."""
    os.makedirs(o.out, exist_ok=True)
    tok = train_tokenizer(o.merges, o.seed)
    ids = {t: tok.token_to_id(t) for t in ADDED}
    o.vocab = tok.get_vocab_size() + o.pad_rows
    tok.save(os.path.join(o.out, "tokenizer.json"), pretty=False)
    put(
        o, "tokenizer_config.json",
        dict(
            tokenizer_class="Qwen2Tokenizer", processor_class="Qwen2_5OmniProcessor", add_bos_token=False,
            add_prefix_space=False, bos_token=None, unk_token=None, eos_token="<|im_end|>",
            pad_token="<|endoftext|>", errors="replace", clean_up_tokenization_spaces=False,
            split_special_tokens=False, model_max_length=32768, extra_special_tokens=NAMES, **NAMES,
            added_tokens_decoder={
                str(i): dict(content=t, lstrip=False, normalized=False, rstrip=False, single_word=False,
                             special=k < N_SPECIAL)
                for k, (t, i) in enumerate(ids.items())
            }))
    put(
        o, "generation_config.json",
        dict(bos_token_id=ids["<|im_start|>"], pad_token_id=ids["<|endoftext|>"],
             eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]], do_sample=False))
    put(o, "config.json", config(o, ids, tok.encode("user").ids[0]))
    if o.template == "jinja":
        put(o, "chat_template.jinja", TEMPLATE)
    else:
        put(o, "chat_template.json", dict(chat_template=TEMPLATE))
    processors(o)
    kind = dict(f32=torch.float32, bf16=torch.bfloat16, f16=torch.float16)[o.dtype]
    prefix = "thinker." if o.layout == "full" else ""
    tensors = {prefix + n: x.to(kind) for n, x in weights(o).items()}
    if o.layout == "full":
        tensors["talker.model.norm.weight"] = torch.ones(3, dtype=kind)
        tensors["token2wav.code2wav_bigvgan_model.x.bias"] = torch.zeros(2, dtype=kind)
    save(o, tensors)
    return sum(x.numel() for n, x in tensors.items() if n.startswith(prefix))


def options(argv=None):
    """Command line -> options: a preset, and what was given beside it."""
    a = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    a.add_argument("--out", required=True)
    a.add_argument("--preset", choices=PRESETS, default="like7b")
    for name, value in PRESETS["like7b"].items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            a.add_argument(flag, action=argparse.BooleanOptionalAction)
        else:
            a.add_argument(flag, type=type(value))
    o = a.parse_args(argv)
    for name, value in PRESETS[o.preset].items():
        if getattr(o, name) is None:
            setattr(o, name, value)
    if sum(int(x) for x in o.mrope.split(",")) * 2 != o.head_dim:
        a.error(f"--mrope {o.mrope} does not add up to half of --head-dim {o.head_dim}")
    if o.heads % o.kv_heads or o.audio_width % o.audio_heads or o.vision_width % (4 * o.vision_heads):
        a.error("kv heads must divide heads, audio heads the audio width, 4 x vision heads the vision width")
    for name, known in (("layout", "full thinker"), ("dtype", "f32 bf16 f16"), ("template", "json jinja"),
                        ("keys", "old new"), ("processor", "old new")):
        if getattr(o, name) not in known.split():
            a.error(f"--{name} {getattr(o, name)}: one of {known}")
    return o


def main():
    o = options()
    n = make(o)
    print(f"{o.out}: {n} parameters, {o.vocab} rows of vocabulary")


if __name__ == "__main__":
    main()
