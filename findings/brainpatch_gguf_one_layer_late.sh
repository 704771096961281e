#!/usr/bin/env bash
# brainpatch 1.2.0: a patch exported for llama.cpp steers one block too late. A patch at layer L adds its vector to the
# output of the 0-based decoder block L; the export writes it as `direction.{L+1}`, "layer indices are 1-based". llama.cpp
# adds direction.N to the output of the 0-based block N, so the vector reaches block L + 1, and a patch of the last block
# reaches none. repeng, which writes the same files, counts as llama.cpp does.
#
# Seen (Python 3.11, CPU, a random Llama of 5 blocks; steered by brainpatch itself, by the exported file at each block):
#   brainpatch steers at layer 2; the exported file has ['direction.3']
#   the file's direction steers as brainpatch does when it is added at the output of block [2]
#   repeng's direction.2 steers as repeng does when it is added at the output of block [2]
#   llama.cpp adds direction.3 at the output of block 3
#
# Fails if this changes.
