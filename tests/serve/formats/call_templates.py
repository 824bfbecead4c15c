"""The parts of the family's chat templates that write calls, as the checkpoints have them: what stands where, and how
arguments and content are read."""

_DEEPSEEK_HEAD = """{{ bos_token }}{% set ns = namespace(asked=false) %}\
{% for message in messages %}\
{%- if message['role'] == 'system' %}{{ message['content'] }}{% endif %}\
{%- if message['role'] == 'user' %}{% set ns.asked = true %}{{ '<｜User｜>' + message['content'] }}{% endif %}"""

# DeepSeek-V3-0324: the call's type, JSON in a fence, a line break between calls.
DEEPSEEK_V3 = (
    _DEEPSEEK_HEAD
    + """\
{%- if message['role'] == 'assistant' and message['tool_calls'] is defined %}{{ '<｜Assistant｜>' }}\
{%- for tool in message['tool_calls'] %}\
{%- if loop.first %}{% if message['content'] is none %}{{ '<｜tool▁calls▁begin｜>' }}\
{%- else %}{{ message['content'] + '<｜tool▁calls▁begin｜>' }}{% endif %}{% else %}{{ '\\n' }}{% endif %}\
{{ '<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\\n' + '```json' + '\\n' \
+ tool['function']['arguments'] + '\\n' + '```' + '<｜tool▁call▁end｜>' }}{% endfor %}\
{{ '<｜tool▁calls▁end｜>' + eos_token }}\
{%- elif message['role'] == 'assistant' %}{{ '<｜Assistant｜>' + message['content'] + eos_token }}{% endif %}\
{%- if message['role'] == 'tool' %}{{ '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' }}\
{%- endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"""
)

# DeepSeek-R1 as it came out: a message with content has no calls, whatever else it has.
DEEPSEEK_R1 = (
    _DEEPSEEK_HEAD
    + """\
{%- if message['role'] == 'assistant' and message['content'] is none %}{{ '<｜Assistant｜><｜tool▁calls▁begin｜>' }}\
{%- for tool in message['tool_calls'] %}{% if not loop.first %}{{ '\\n' }}{% endif %}\
{{ '<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\\n' + '```json' + '\\n' \
+ tool['function']['arguments'] + '\\n' + '```' + '<｜tool▁call▁end｜>' }}{% endfor %}\
{{ '<｜tool▁calls▁end｜>' + eos_token }}{% endif %}\
{%- if message['role'] == 'assistant' and message['content'] is not none %}\
{{ '<｜Assistant｜>' + message['content'].split('</think>')[-1] + eos_token }}{% endif %}\
{%- if message['role'] == 'tool' %}{{ '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' }}\
{%- endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"""
)

# DeepSeek-V3.1: calls one behind the other, and no assistant's turn in front of what follows a result.
DEEPSEEK_V31 = (
    _DEEPSEEK_HEAD
    + """\
{%- if message['role'] == 'assistant' %}\
{%- if ns.asked %}{{ '<｜Assistant｜></think>' }}{% endif %}{% set ns.asked = false %}\
{%- if message['tool_calls'] is defined and message['tool_calls'] is not none %}\
{%- for tool in message['tool_calls'] %}\
{%- if loop.first %}{% if message['content'] is none %}{{ '<｜tool▁calls▁begin｜>' }}\
{%- else %}{{ message['content'] + '<｜tool▁calls▁begin｜>' }}{% endif %}{% endif %}\
{{ '<｜tool▁call▁begin｜>' + tool['function']['name'] + '<｜tool▁sep｜>' + tool['function']['arguments'] \
+ '<｜tool▁call▁end｜>' }}{% endfor %}{{ '<｜tool▁calls▁end｜>' }}{% else %}{{ message['content'] }}{% endif %}\
{{ eos_token }}{% endif %}\
{%- if message['role'] == 'tool' %}{{ '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' }}\
{%- endif %}{% endfor %}\
{% if add_generation_prompt and ns.asked %}\
{{ '<｜Assistant｜>' }}{{ '<think>' if thinking else '</think>' }}{% endif %}"""
)

# DeepSeek-V3.2, after its encoder: parameters that say whether they are strings.
DEEPSEEK_V32 = """{{ bos_token }}{% set dsml = '｜DSML｜' %}{% for message in messages %}\
{%- if message.role == 'user' %}{{ '<｜User｜>' + message.content + '<｜Assistant｜></think>' }}\
{%- elif message.role == 'assistant' %}{{ message.content }}\
{%- if message.tool_calls %}{{ '\\n\\n<' + dsml + 'function_calls>' }}\
{%- for call in message.tool_calls %}{{ '\\n<' + dsml + 'invoke name="' + call.function.name + '">\\n' }}\
{%- if call.function.arguments is mapping %}{% for key, value in call.function.arguments.items() %}\
{%- if not loop.first %}{{ '\\n' }}{% endif %}\
{{ '<' + dsml + 'parameter name="' + key + '" string="' + ('true' if value is string else 'false') + '">' }}\
{{ value if value is string else value | tojson }}{{ '</' + dsml + 'parameter>' }}{% endfor %}{% endif %}\
{{ '\\n</' + dsml + 'invoke>' }}{% endfor %}{{ '\\n</' + dsml + 'function_calls>' }}{% endif %}{{ eos_token }}\
{%- elif message.role == 'tool' %}{{ '\\n\\n<function_results>\\n<result>' + message.content + '</result>' \
+ '\\n</function_results>\\n\\n</think>' }}{% endif %}{% endfor %}"""

# Kimi-K2-Thinking: the id in place of the name, arguments as they come.
KIMI = """{% for message in messages %}<|im_{{ message.role }}|>{{ message.role }}<|im_middle|>\
{%- if message.role == 'assistant' %}<think>{{ message.get('reasoning_content', '') }}</think>{{ message.content }}\
{%- if message.get('tool_calls') %}<|tool_calls_section_begin|>{% for call in message['tool_calls'] %}\
<|tool_call_begin|>{{ call['id'] }}<|tool_call_argument_begin|>\
{%- if call['function']['arguments'] is string %}{{ call['function']['arguments'] }}\
{%- else %}{{ call['function']['arguments'] | tojson }}{% endif %}<|tool_call_end|>{% endfor %}\
<|tool_calls_section_end|>{% endif %}\
{%- elif message.role == 'tool' %}## Return of {{ message.tool_call_id }}
{{ message.content }}{% else %}{{ message.content }}{% endif %}<|im_end|>{% endfor %}\
{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"""


# GLM-4.5 and GLM-4.7 as they do not think. The arrow is a line break in GLM-4.5, and nothing in GLM-4.7.
_GLM = """[gMASK]<sop>{% for m in messages %}\
{%- if m.role == 'user' %}<|user|>⏎{{ m.content }}\
{%- elif m.role == 'assistant' %}<|assistant|>{{ thought }}\
{%- if m.content.strip() %}{{ '⏎' + m.content.strip() }}{% endif %}\
{% for tc in m.tool_calls or [] %}{% set tc = tc.function %}{{ '⏎<tool_call>' + tc.name + '⏎' }}\
{% for k, v in tc.arguments.items() %}<arg_key>{{ k }}</arg_key>⏎<arg_value>\
{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>⏎{% endfor %}</tool_call>{% endfor %}\
{%- elif m.role == 'tool' %}<|observation|>⏎<tool_response>{{ m.content }}</tool_response>{% endif %}{% endfor %}\
{% if add_generation_prompt %}<|assistant|>{{ thought }}{% endif %}"""
GLM45 = "{% set thought = '\n<think></think>' %}" + _GLM.replace("⏎", "\n")
GLM47 = "{% set thought = '</think>' %}" + _GLM.replace("⏎", "")

# Youtu-LLM: one JSON object a call.
HERMES = """{{ bos_token }}{% for message in messages %}\
{%- if message.role == 'user' %}{{ '<|User|>' + message.content }}\
{%- elif message.role == 'assistant' %}{{ '<|Assistant|>' + message.content }}\
{%- for call in message.tool_calls or [] %}\
{{ '<tool_call>{"name": "' + call.function.name + '", "arguments": ' }}{{ call.function.arguments | tojson }}\
{{- '}</tool_call>' }}{% endfor %}{{ eos_token }}\
{%- elif message.role == 'tool' %}<|User|><tool_response>{{ message.content }}</tool_response>{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"""
