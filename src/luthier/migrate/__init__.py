"""Configurations of other tools, read and written as Luthier's: LLaMA-Factory, Axolotl and torchtune.

Every key of the source ends as a finding: mapped, mapped with a note, not needed, without a counterpart, or
not understood. What each tool's keys mean stands in the tables of its folder, one entry a key.
"""
