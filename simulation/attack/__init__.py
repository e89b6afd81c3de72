"""What a curious coordinator gets from one hospital's update, with and without secure aggregation.

Two published kinds of attack on what a coordinator holds: reconstructing training images (`inversion`) and
telling who was trained on (`membership`). Each is run on the plain delta, on the masked vector of the same
hospital, and on the cohort's sum; masked vectors and sums come from the protocol itself (`cohort`).
"""
