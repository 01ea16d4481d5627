"""Readers of the data sets, windows, splits, features of raw EEG, and the tasks made of them."""

from strnn_models.data.afew import read_afew
from strnn_models.data.aff_wild2 import read_aff_wild2, read_annotations
from strnn_models.data.ck_plus import read_ck_plus
from strnn_models.data.de_features import differential_entropy
from strnn_models.data.deap import read_deap
from strnn_models.data.frames import Clip, ClipDataset
from strnn_models.data.montages import grid_from_mne, grid_from_table, topology_from_mne
from strnn_models.data.recola import read_recola
from strnn_models.data.records import DataError, Records, Skip
from strnn_models.data.seed import (
    Trial,
    front_back,
    read_seed,
    read_seed_iv,
    read_seed_v,
    read_seed_vii,
)
from strnn_models.data.sewa import read_avec, read_sewa
from strnn_models.data.splits import LeakageWarning, leave_one_subject_out, split
from strnn_models.data.traces import Trace, TraceWindows
from strnn_models.data.windows import Windows, standardise

__all__ = [
    "Clip",
    "ClipDataset",
    "DataError",
    "LeakageWarning",
    "Records",
    "Skip",
    "Trace",
    "TraceWindows",
    "Trial",
    "Windows",
    "differential_entropy",
    "front_back",
    "grid_from_mne",
    "grid_from_table",
    "leave_one_subject_out",
    "read_afew",
    "read_aff_wild2",
    "read_annotations",
    "read_avec",
    "read_ck_plus",
    "read_deap",
    "read_recola",
    "read_seed",
    "read_seed_iv",
    "read_seed_v",
    "read_seed_vii",
    "read_sewa",
    "split",
    "standardise",
    "topology_from_mne",
]
