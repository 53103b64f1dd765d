"""Dense tensors to factors: CP, Tucker, tensor train, and how many components to keep."""

from growarray.decompose.allocate import Allocation, Candidate, allocate
from growarray.decompose.bound import rank_for_error, rank_for_output_error
from growarray.decompose.cp import CP, cp
from growarray.decompose.rank import (
    cp_parameters,
    factor_std,
    largest_cp_rank,
    largest_tt_rank,
    largest_tucker_rank,
    tt_parameters,
    tucker_parameters,
    validate_cp_rank,
    validate_tt_rank,
    validate_tucker_rank,
)
from growarray.decompose.ring import TensorRing, largest_tr_rank, tensor_ring, validate_tr_rank
from growarray.decompose.stable import Degeneracy
from growarray.decompose.tt import TensorTrain, tensor_train
from growarray.decompose.tucker import Tucker, tucker
from growarray.decompose.vbmf import VBMF, vbmf, vbmf_rank
from growarray.decompose.whiten import channel_moment, output_error

__all__ = [
    "CP",
    "VBMF",
    "Allocation",
    "Candidate",
    "Degeneracy",
    "TensorRing",
    "TensorTrain",
    "Tucker",
    "allocate",
    "channel_moment",
    "cp",
    "cp_parameters",
    "factor_std",
    "largest_cp_rank",
    "largest_tr_rank",
    "largest_tt_rank",
    "largest_tucker_rank",
    "output_error",
    "rank_for_error",
    "rank_for_output_error",
    "tensor_ring",
    "tensor_train",
    "tt_parameters",
    "tucker",
    "tucker_parameters",
    "validate_cp_rank",
    "validate_tr_rank",
    "validate_tt_rank",
    "validate_tucker_rank",
    "vbmf",
    "vbmf_rank",
]
