"""What is structurally different between families of decoder layers; one file each.

A file names the classes of decoder layers that it describes (`LAYERS`) and says what one is made of (`describe`).
A family without a file, or whose description does not give the plain model's numbers (fused/check.py), runs plain.
"""
