"""Small tokenizers and chat templates in the shapes that the family's checkpoints have them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = [
    "The quick brown fox jumps over the lazy dog. 1234567890 times, isn't it?\n\n",
    "Größe, naïve café, Ελληνικά, русский, 中文和English混合, 日本語です, 한국어, 👩‍👩‍👧 🇩🇪 émigré",
    "def f(x):\n\treturn x ** 2  # squared\n",
] * 8

BOS, EOS, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"

# After DeepSeek-R1: a namespace, `is defined` and `is none` tests, attribute assignment, split and negative index.
DEEPSEEK = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}\
{% set ns = namespace(is_first=true, system_prompt='', is_tool=false) %}\
{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first %}\
{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first = false %}{%- else %}\
{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}\
{{ bos_token }}{{ ns.system_prompt }}\
{%- for message in messages %}{%- if message['role'] == 'user' %}{{'<｜User｜>' + message['content']}}{%- endif %}\
{%- if message['role'] == 'assistant' and 'tool_calls' in message %}{{ message['tool_calls'] | tojson }}{%- endif %}\
{%- if message['role'] == 'assistant' and message['content'] is not none %}{% set content = message['content'] %}\
{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}\
{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endfor -%}\
{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"""

# After DeepSeek-V2: words for roles, one expression a turn.
DEEPSEEK_V2 = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}\
{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}\
{{ 'User: ' + message['content'] + '\\n\\n' }}{% elif message['role'] == 'assistant' %}\
{{ 'Assistant: ' + message['content'] + eos_token }}{% elif message['role'] == 'system' %}\
{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""

# After GLM-4.7: line breaks that trim_blocks takes, macros, tojson with arguments, loop variables, reversed, break.
GLM = """[gMASK]<sop>
{%- if tools -%}
<|system|>
# Tools
{% for tool in tools %}
{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}
{%- endif -%}
{%- macro visible_text(content) -%}
    {%- if content is string -%}
        {{- content }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for item in content -%}
            {%- if item is mapping and item.type == 'text' -%}
                {{- item.text }}
            {%- elif item is string -%}
                {{- item }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{- content }}
    {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last_user_index=-1) %}
{%- for m in messages | reverse %}
    {%- if m.role == 'user' %}
        {%- set ns.last_user_index = messages | length - 1 - loop.index0 -%}
        {%- break %}
    {%- endif %}
{%- endfor %}
{% for m in messages %}
{%- if m.role == 'user' -%}<|user|>{{ visible_text(m.content) }}
{%- elif m.role == 'assistant' -%}
<|assistant|>
{%- set reasoning_content = '' %}
{%- set content = visible_text(m.content) %}
{%- if m.reasoning_content is string %}
    {%- set reasoning_content = m.reasoning_content %}
{%- else %}
    {%- if '</think>' in content %}
        {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
{%- endif %}
{%- if loop.index0 > ns.last_user_index and reasoning_content -%}
{{ '<think>' + reasoning_content.strip() +  '</think>'}}
{%- else -%}
{{ '</think>' }}
{%- endif -%}
{%- if content.strip() -%}
{{ content.strip() }}
{%- endif -%}
{%- elif m.role == 'system' -%}
<|system|>{{ visible_text(m.content) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    <|assistant|>{{- '</think>' if (enable_thinking is defined and not enable_thinking) else '<think>' -}}
{%- endif -%}
"""

# After Kimi-K2 and Moonlight: separators, a default system turn, get(), inline conditions, a generation block, a date.
KIMI = """{%- if tools -%}
  <|im_system|>tool_declare<|im_middle|>{{ tools | tojson(separators=(',', ':')) }}<|im_end|>
{%- endif -%}
{%- for message in messages -%}
  {%- if loop.first and messages[0]['role'] != 'system' -%}
    <|im_system|>system<|im_middle|>You are provided by {{ provider | default('Moonshot-AI') }}<|im_end|>
  {%- endif -%}
  {%- set role_name = message.get('name') or message['role'] -%}
  {%- if message['role'] == 'user' -%}
    <|im_user|>{{ role_name }}<|im_middle|>
  {%- elif message['role'] == 'assistant' -%}
    <|im_assistant|>{{ role_name }}<|im_middle|>
  {%- else -%}
    <|im_system|>{{ role_name }}<|im_middle|>
  {%- endif -%}
  {%- if message['role'] == 'assistant' -%}
    {% generation %}{% set text = message['content'] | trim %}{{ text }}<|im_end|>{% endgeneration %}
  {%- elif message['content'] is string -%}
    {{ message['content'] }}<|im_end|>
  {%- else -%}
    {%- for content in message['content'] -%}
      {%- if content['type'] == 'text' -%}{{ content['text'] }}{%- else -%}{% continue %}{%- endif -%}
    {%- endfor -%}<|im_end|>
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  <|im_assistant|>assistant<|im_middle|>
{%- endif -%}
{% if dated is defined %}{{ strftime_now('%Y') }}{% endif %}
"""

# After Youtu-LLM: indented blocks (lstrip_blocks), raise_exception, a filter chain, items(), HTML-like text.
YOUTU = """{{- bos_token }}
    {%- if messages[0]['role'] == 'system' %}
        {%- set system_message = messages[0]['content'] | trim %}
        {%- set turns = messages[1:] %}
    {%- else %}
        {%- set system_message = '' %}
        {%- set turns = messages %}
    {%- endif %}
    {{- system_message }}
    {% if extra is defined %}
    {% for key, value in extra.items() %}
<{{ key }}>{{ value | tojson }}</{{ key }}>
    {% endfor %}
    {% endif %}
    {%- for message in turns %}
        {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
            {{- raise_exception('Conversation roles must alternate user/assistant, not "' + message.role + '"') }}
        {%- endif %}
        {%- if message['role'] == 'user' %}
            {{- '<|User|>' + message['content'] }}
        {%- else %}
            {{- '<|Assistant|>' + message['content'] + eos_token }}
        {%- endif %}
    {%- endfor %}
    {%- if add_generation_prompt %}
        {{- '<|Assistant|>' }}
        {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
    {%- endif %}
"""

TEMPLATES = {"deepseek_v3": DEEPSEEK, "deepseek_v2": DEEPSEEK_V2, "glm4": GLM, "kimi": KIMI, "youtu": YOUTU}


def write_json(path: Path, content: object) -> None:
    """`content` as the JSON file `path`."""
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def byte_level_checkpoint(folder: Path, template: str | list | None = DEEPSEEK, **config: object) -> Path:
    """A folder with a byte-level BPE tokenizer.json as DeepSeek-V3's and tokenizer_config.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
            pre_tokenizers.Split(Regex(r"[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken(USER), AddedToken(ASSISTANT), AddedToken("<think>"), AddedToken("</think>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    entries = {"bos_token": {"content": BOS, "__type": "AddedToken"}, "eos_token": EOS, **config}
    if template is not None:
        entries["chat_template"] = template
    write_json(folder / "tokenizer_config.json", entries)
    return folder


def byte_fallback_checkpoint(folder: Path) -> Path:
    """A folder with a SentencePiece-like tokenizer.json, whose unknown characters fall back to byte tokens."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    for piece in ["▁", "H", "e", "l", "o", "w", "r", "d", "▁w", "ll", "He", "▁wor", "▁", "ü"]:
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [("l", "l"), ("H", "e"), ("▁", "w")]
    model = models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True})
    return folder


def tiktoken_checkpoint(folder: Path) -> Path:
    """A folder with a tiktoken.model of 256 bytes and some merges, and Kimi's special tokens behind it."""
    ranks = [bytes([byte]) for byte in range(256)]
    ranks += [text.encode() for text in ("th", "he", "the", " t", " the", "in", "混", "合", "混合", "中文", "En")]
    # Byte pairs that reach the characters above: a rank's halves must be ranks too.
    ranks += [text.encode()[:2] for text in ("混", "合", "中", "文")] + ["中".encode(), "文".encode()]
    lines = [base64.b64encode(piece) + b" " + str(rank).encode() for rank, piece in enumerate(dict.fromkeys(ranks))]
    (folder / "tiktoken.model").write_bytes(b"\n".join(lines) + b"\n")
    base = len(lines)
    names = ["[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>"]
    added = {str(base + i): {"content": name, "special": True} for i, name in enumerate(names)}
    added[str(base + 20)] = {"content": "<think>", "special": False}
    config = {"bos_token": "[BOS]", "eos_token": "[EOS]", "chat_template": KIMI, "added_tokens_decoder": added}
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "generation_config.json", {"eos_token_id": base + 2})
    return folder
