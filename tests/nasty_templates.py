# ruff: noqa: E501 - templates are written as models have them
"""Chat templates that do at once what real families do apart: close turns late, strip, merge, sort, count back."""

LATE_CLOSER = """{{- bos_token -}}
{%- set state = namespace(inside=false) -%}
{%- if messages[0].role != 'system' -%}{{- '<|system|>You are a model that was made for tests.<|end|>' -}}{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {%- if not state.inside -%}{{- '<|assistant|>' -}}{%- set state.inside = true -%}{%- endif -%}
        {%- if message.content is string and message.content -%}{{- message.content -}}{%- endif -%}
        {%- for call in message.tool_calls or [] -%}{{- '<tool_call>' + call.function | tojson + '</tool_call>' -}}{%- endfor -%}
    {%- elif message.role == 'tool' -%}
        {{- '<tool_response>' + message.content + '</tool_response>' -}}
    {%- else -%}
        {%- if state.inside -%}{{- '<|end|>' -}}{%- set state.inside = false -%}{%- endif -%}
        {{- '<|' + message.role + '|>' + message.content -}}
        {%- if message.role == 'system' and tools -%}{{- '\nTools: ' + tools | tojson -}}{%- endif -%}
        {{- '<|end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if state.inside -%}{{- '<|end|>' -}}{%- endif -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"""
"""A turn of the assistant goes on over calls and results, and is closed by whoever comes next."""

ASKS_TO_THINK = """{%- macro plain(content) -%}
    {%- if content is string -%}{{- content | trim -}}{%- elif content -%}{%- for part in content -%}{{- part.text | trim -}}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{{- '[gMASK]<sop>' -}}
{%- if tools -%}{{- '<|system|>\n# Tools\n' -}}{%- for tool in tools -%}{{- tool | tojson(ensure_ascii=False) + '\n' -}}{%- endfor -%}{%- endif -%}
{%- set last = namespace(index=-1) -%}
{%- for message in messages -%}{%- if message.role == 'user' -%}{%- set last.index = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}{{- '<|user|>\n' -}}{{- plain(message.content) -}}
    {%- elif message.role == 'system' -%}{{- '<|system|>\n' -}}{{- plain(message.content) -}}
    {%- elif message.role == 'tool' -%}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<|observation|>' -}}{%- endif -%}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' -}}
    {%- else -%}
        {%- set said = plain(message.content) -%}
        {%- set thought = message.reasoning_content or '' -%}
        {%- if '</think>' in said -%}{%- set thought = said.split('</think>')[0].split('<think>')[-1] -%}{%- set said = said.split('</think>')[-1] -%}{%- endif -%}
        {{- '<|assistant|>\n' -}}
        {%- if loop.index0 > last.index and thought -%}{{- '<think>' + thought.strip() + '</think>\n' -}}{%- else -%}{{- '<think></think>\n' -}}{%- endif -%}
        {{- said.strip() -}}
        {%- for call in message.tool_calls or [] -%}{{- '\n<tool_call>' + call.function.name + '\n' + call.function.arguments | tojson + '</tool_call>' -}}{%- endfor -%}
        {{- '<|end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\n' + ('<think></think>\n' if enable_thinking is defined and not enable_thinking else '') -}}{%- endif -%}"""
"""Reasoning only behind the last question; an empty block elsewhere; text by way of a macro."""

FIRST_INTO_USER = """{{- bos_token -}}
{%- if messages[0].role == 'system' -%}{%- set first = messages[0].content | trim + '\n\n' -%}{%- set rest = messages[1:] -%}{%- else -%}{%- set first = '' -%}{%- set rest = messages -%}{%- endif -%}
{%- for message in rest -%}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('Conversation roles must alternate: user, assistant, user') -}}{%- endif -%}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' + (first if loop.first else '') -}}
    {{- message.content | trim -}}
    {{- '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' -}}{%- endif -%}"""
"""The system prompt goes into the first question; everything is trimmed, and roles must alternate."""

TOOLS_AT_THE_LAST_QUESTION = """{{- bos_token -}}
{%- set users = messages | selectattr('role', 'equalto', 'user') | list -%}
{%- set system = messages | selectattr('role', 'equalto', 'system') | map(attribute='content') | join('\n') -%}
{%- for message in messages | rejectattr('role', 'equalto', 'system') -%}
    {%- if message.role == 'user' -%}
        {%- if message is sameas users[-1] and tools -%}{{- '[AVAILABLE_TOOLS]' + tools | map(attribute='function') | list | tojson + '[/AVAILABLE_TOOLS]' -}}{%- endif -%}
        {{- '[INST]' + ((system + '\n\n') if system and message is sameas users[-1] else '') + message.content + '[/INST]' -}}
    {%- elif message.role == 'tool' -%}{{- '[TOOL_RESULTS]' + {'content': message.content} | tojson + '[/TOOL_RESULTS]' -}}
    {%- elif message.tool_calls -%}{{- '[TOOL_CALLS]' + message.tool_calls | map(attribute='function') | list | tojson + eos_token -}}
    {%- else -%}{{- message.content + eos_token -}}{%- endif -%}
{%- endfor -%}"""
"""Tools and system prompt stand before the last question, wherever they were; filters choose the messages."""

SORTED_RESULTS = """{%- for message in messages -%}
    {%- if message.role == 'tool' -%}
        {%- if loop.previtem.role != 'tool' -%}
            {%- set run = namespace(open=true, texts=[]) -%}
            {%- for other in messages[loop.index0:] -%}{%- if other.role == 'tool' and run.open -%}{%- set run.texts = run.texts + [other.content] -%}{%- else -%}{%- set run.open = false -%}{%- endif -%}{%- endfor -%}
            {{- '<|im_start|>tool\n' -}}{%- for text in run.texts | sort -%}{{- '<tool_response>' + text + '</tool_response>' -}}{%- endfor -%}{{- '<|im_end|>\n' -}}
        {%- endif -%}
    {%- elif loop.first or loop.previtem.role != message.role or message.role == 'assistant' -%}
        {{- '<|im_start|>' + message.role + '\n' -}}
        {{- message.content or '' -}}
        {%- for call in message.tool_calls | default([], true) | reverse -%}{{- '\n<tool_call>' + call.function | tojson + '</tool_call>' -}}{%- endfor -%}
        {%- if loop.last or loop.nextitem.role != message.role or message.role == 'assistant' -%}{{- '<|im_end|>\n' -}}{%- endif -%}
    {%- else -%}
        {{- '\n' + message.content + ('<|im_end|>\n' if loop.last or loop.nextitem.role != message.role else '') -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"""
"""Results of tools are sorted and written where the first one was, calls from the last to the first, questions merged."""

ONE_TEXT = """{%- set book = namespace(text=bos_token) -%}
{%- for message in messages -%}
    {%- set line = '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -%}
    {%- set book.text = book.text + line -%}
{%- endfor -%}
{{- book.text + ('<|im_start|>assistant\n' if add_generation_prompt else '') -}}"""
"""Everything is put together first and written at the end: nobody can see which text is whose."""

COUNTS_BACK = """{%- set memory = namespace(keep=[], chars=0) -%}
{%- for message in messages | reverse -%}
    {%- if memory.chars < 100000 -%}{%- set memory.keep = [message] + memory.keep -%}{%- set memory.chars = memory.chars + (message.content or '') | length -%}{%- endif -%}
{%- endfor -%}
{%- for turn in memory.keep recursive -%}
    {%- set who = {'assistant': 'CHATBOT', 'user': 'USER'}.get(turn.role, 'SYSTEM') -%}
    {{- '<|START_OF_TURN_TOKEN|><|' + who + '_TOKEN|>' -}}
    {%- if turn.role == 'assistant' and '</think>' in turn.content and not loop.last -%}{{- turn.content.split('</think>', 1)[1].strip() -}}
    {%- else -%}{{- turn.content -}}{%- endif -%}
    {{- '<|END_OF_TURN_TOKEN|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' -}}{%- endif -%}"""
"""A list of messages that the template makes itself, from the end to the beginning, in a loop that may call itself."""

NASTY = {
    "late_closer": LATE_CLOSER,
    "asks_to_think": ASKS_TO_THINK,
    "first_into_user": FIRST_INTO_USER,
    "tools_at_the_last_question": TOOLS_AT_THE_LAST_QUESTION,
    "sorted_results": SORTED_RESULTS,
}
