"""How llama.cpp knows each family of models; the file name is transformers' `model_type`.

A file says what llama.cpp calls the architecture (`NAME`), which numbers of the configuration it must know (`facts`),
and, where its tensors are not transformers', what becomes of one (`tensors`) and which are added (`more`).
"""
